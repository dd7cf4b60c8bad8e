//! What nobody may read in a log, a report or a message, and how it is taken out there.
//!
//! Secrets are kept out where they would be said in the first place: types that hold them print nothing, a job's addresses
//! hold none. This is the last gate, for texts that come from elsewhere: errors of stores and of the system, panics, lists of
//! shards. Every process learns its secrets once and lets all that it says go through here. Pure but for that memory.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::RwLock;

/// Stands where a secret stood.
pub const HIDDEN: &str = "***";
/// Shorter values are words, and hiding them would hide those everywhere.
const BYTES_MIN: usize = 8;
/// What parts of a variable's name say that its value is a secret.
const SECRET_WORDS: [&str; 6] = ["SECRET", "TOKEN", "PASSWORD", "CREDENTIAL", "SAS", "KEY"];
/// Ends of names whose values are names themselves.
const PLAIN_ENDS: [&str; 5] = ["_FILE", "_ID", "_PATH", "_URI", "_URL"];
/// Beginnings of names that are ours or a store's; others are none of our business.
const OWNERS: [&str; 6] = ["AWS_", "GOOGLE_", "AZURE_", "ARGOSY_", "ETCD_", "HF_"];
/// Parts of names of query parameters whose values are secrets.
const PARAMETERS: [&str; 7] = ["sig", "token", "key", "credential", "secret", "password", "policy"];

static LEARNED: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// From now on `secret` is hidden in this process.
pub fn learn(secret: &str) {
    let secret = secret.trim();
    if secret.len() < BYTES_MIN {
        return;
    }
    // One with quotes or line breaks, such as a key of Google's, stands in JSON in another form.
    let quoted = serde_json::Value::from(secret).to_string();
    remember(secret);
    remember(quoted.trim_matches('"'));
}

fn remember(secret: &str) {
    let mut learned = match LEARNED.write() {
        Ok(learned) => learned,
        Err(poisoned) => poisoned.into_inner(),
    };
    if !learned.iter().any(|known| known == secret) {
        learned.push(secret.to_owned());
        // A secret that holds another is hidden whole.
        learned.sort_by_key(|known| std::cmp::Reverse(known.len()));
    }
}

/// Learns those of an environment's variables that are secrets.
pub fn learn_environment(variables: impl IntoIterator<Item = (String, String)>) {
    for (name, value) in variables {
        let owned = OWNERS.iter().any(|owner| name.starts_with(owner));
        let secret = SECRET_WORDS.iter().any(|word| name.contains(word));
        if name.starts_with(crate::config::JOB_VARIABLES) {
            continue; // keys of jobs, some of which are called keys
        }
        if owned && secret && !PLAIN_ENDS.iter().any(|end| name.ends_with(end)) {
            learn(&value);
        }
    }
}

/// `text` without what was learned, and without credentials in addresses.
#[must_use]
pub fn hide(text: &str) -> Cow<'_, str> {
    let learned = match LEARNED.read() {
        Ok(learned) => learned,
        Err(poisoned) => poisoned.into_inner(),
    };
    let mut text = Cow::Borrowed(text);
    for secret in learned.iter() {
        if text.contains(secret.as_str()) {
            text = Cow::Owned(text.replace(secret.as_str(), HIDDEN));
        }
    }
    if text.contains("://")
        && let Some(clean) = hide_addresses(&text)
    {
        text = Cow::Owned(clean);
    }
    text
}

/// Whether an address has credentials in it: a user before its host, or a signature behind its path.
#[must_use]
pub fn in_address(address: &str) -> bool {
    hide_addresses(address).is_some()
}

/// `None` where no address has credentials.
fn hide_addresses(text: &str) -> Option<String> {
    let ends = |c: char| c.is_whitespace() || "\"'<>`,;)]}".contains(c);
    let (mut out, mut rest, mut changed) = (String::with_capacity(text.len()), text, false);
    while let Some(at) = rest.find("://") {
        let (before, address) = rest.split_at(at + 3);
        out.push_str(before);
        let length = address.find(ends).unwrap_or(address.len());
        let (address, behind) = address.split_at(length);
        let host = address.find(['/', '?', '#']).unwrap_or(address.len());
        let (mut host, path) = address.split_at(host);
        if let Some((user, name)) = host.rsplit_once('@')
            && user != HIDDEN
        {
            changed = true;
            out.push_str(HIDDEN);
            out.push('@');
            host = name;
        }
        out.push_str(host);
        changed |= hide_query(path, &mut out);
        rest = behind;
    }
    out.push_str(rest);
    changed.then_some(out)
}

/// Appends a path with its query, without the values of secret parameters. Whether there were any.
fn hide_query(path: &str, out: &mut String) -> bool {
    let Some((path, query)) = path.split_once('?') else {
        out.push_str(path);
        return false;
    };
    let mut changed = false;
    out.push_str(path);
    for (i, part) in query.split('&').enumerate() {
        out.push(if i == 0 { '?' } else { '&' });
        match part.split_once('=') {
            Some((name, value)) if value != HIDDEN && is_secret(name) => {
                changed = true;
                out.push_str(name);
                out.push('=');
                out.push_str(HIDDEN);
            }
            _ => out.push_str(part),
        }
    }
    changed
}

fn is_secret(parameter: &str) -> bool {
    let name = parameter.to_ascii_lowercase();
    PARAMETERS.iter().any(|word| name.contains(word))
}

/// A writer behind which nothing secret comes. What is written at once is looked at as one text, as logs write their lines.
#[derive(Debug)]
pub struct Hiding<W>(pub W);

impl<W: Write> Write for Hiding<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.0.write_all(hide(text).as_bytes())?,
            Err(_) => self.0.write_all(hide(&String::from_utf8_lossy(bytes)).as_bytes())?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learned_secrets_are_hidden_the_longer_first_and_words_are_not_secrets() {
        learn("canary-a-1");
        learn("canary-a-1-and-more\n");
        learn("word");
        assert_eq!(hide("x canary-a-1-and-more y canary-a-1 word"), "x *** y *** word");
        assert!(matches!(hide("nothing"), Cow::Borrowed(_)));
        learn("{\"key\": \"canary\\n\"}");
        let said = serde_json::json!({"said": "x {\"key\": \"canary\\n\"}"}).to_string();
        assert!(!hide(&said).contains("canary"), "{said}");
    }

    #[test]
    fn environment_teaches_secrets_by_the_names_of_variables() {
        let variables = [
            ("AWS_SECRET_ACCESS_KEY", "canary-b-1"),
            ("AWS_ACCESS_KEY_ID", "canary-b-2"),
            ("AZURE_STORAGE_SAS_TOKEN", "canary-b-3"),
            ("GOOGLE_SERVICE_ACCOUNT_KEY", "canary-b-4"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "canary-b-5"),
            ("MY_PASSWORD", "canary-b-6"),
            ("ARGOSY_ETCD_PASSWORD", "canary-b-7"),
            ("ARGOSY_JOB__DATA__TEXT_KEY", "canary-b-8"),
        ];
        learn_environment(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let said: Vec<Cow<'_, str>> = variables.iter().map(|(_, value)| hide(value)).collect();
        let hidden: Vec<bool> = said.iter().map(|said| *said == HIDDEN).collect();
        assert_eq!(hidden, [true, false, true, true, false, false, true, false]);
    }

    #[test]
    fn addresses_lose_users_and_signatures_and_nothing_else() {
        for (text, expected) in [
            (
                "get https://me:pw@h.org/a/x.tar: 403",
                "get https://***@h.org/a/x.tar: 403",
            ),
            (
                "(\"s3://b/k?X-Amz-Signature=abc&part=1\")",
                "(\"s3://b/k?X-Amz-Signature=***&part=1\")",
            ),
            (
                "az://c/b?sv=1&sig=a%2Fb, az://c/d?se=2",
                "az://c/b?sv=1&sig=***, az://c/d?se=2",
            ),
            ("https://h/a@b/c?x=1", "https://h/a@b/c?x=1"),
            ("me@home ://", "me@home ://"),
        ] {
            assert_eq!(hide(text), expected);
            assert_eq!(hide(&hide(text)), expected, "twice is once");
            assert_eq!(in_address(text), text != expected, "{text}");
        }
    }

    #[test]
    fn writer_hides_what_goes_through_it() {
        learn("canary-c-1");
        let mut log = Hiding(Vec::new());
        log.write_all(b"a canary-c-1\n").expect("memory");
        log.write_all(b"\xff canary-c-1\n").expect("memory");
        let said = String::from_utf8_lossy(&log.0).into_owned();
        assert!(!said.contains("canary") && said.matches(HIDDEN).count() == 2, "{said}");
    }
}
