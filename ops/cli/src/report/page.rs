//! The page as a whole: one file, no script, nothing from the network.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

const STYLE: &str = include_str!("page.css");

/// Text that holds no markup, in elements and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A page that may load nothing and run nothing: its style by digest, pictures from the page itself.
pub(super) fn whole(title: &str, body: &str) -> String {
    let digest = STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    let policy =
        format!("default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(title)
    )
}

/// A table whose columns are words where `words` says so; it scrolls inside its own box.
pub(super) fn table(head: &[&str], words: &[usize], rows: &[Vec<String>]) -> String {
    let class = |column: usize| {
        if words.contains(&column) {
            " class=\"words\""
        } else {
            ""
        }
    };
    let mut html = String::from("<div class=\"wide\"><table><thead><tr>");
    for (column, name) in head.iter().enumerate() {
        let _ = write!(html, "<th{}>{}</th>", class(column), escape(name));
    }
    html.push_str("</tr></thead><tbody>\n");
    for row in rows {
        html.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(html, "<td{}>{}</td>", class(column), escape(cell));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
    html
}

/// A named section; `inside` is markup.
pub(super) fn section(name: &str, inside: &str) -> String {
    format!("<section>\n<h2>{}</h2>\n{inside}</section>\n", escape(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_allows_its_own_style_and_nothing_else() {
        let page = whole("a <run>", "<p>x</p>\n");
        let style = page.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
        let digest = STANDARD.encode(Sha256::digest(style.as_bytes()));
        assert!(page.contains(&format!("default-src 'none'; style-src 'sha256-{digest}'")));
        assert!(page.contains("<title>a &lt;run&gt;</title>"));
        for banned in ["<script", "http://", "https://", "@import", "url(", " style="] {
            assert!(!page.contains(banned), "{banned}");
        }
    }

    #[test]
    fn table_cells_are_text() {
        let html = table(&["a", "b"], &[1], &[vec!["1".into(), "<b>&\"".into()]]);
        assert!(html.contains("<td class=\"words\">&lt;b&gt;&amp;&quot;</td>"), "{html}");
    }
}
