//! The tree to serde: errors name the key and the place of the value that did not fit.

use super::super::ConfigError;
use super::{Node, Place, Value};
use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;
use std::fmt;

/// What did not fit, and where: keys from the inside out.
#[derive(Debug)]
pub(super) struct Misfit {
    message: String,
    place: Option<Place>,
    keys: Vec<String>,
}

impl Misfit {
    fn within(mut self, key: impl Into<String>, place: &Place) -> Self {
        self.keys.push(key.into());
        self.place.get_or_insert_with(|| place.clone());
        self
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            message: message.to_string(),
            place: None,
            keys: Vec::new(),
        }
    }
}

impl Node {
    /// Reads a value out of the tree.
    pub(in crate::config) fn read_out<T: de::DeserializeOwned>(&self) -> Result<T, ConfigError> {
        T::deserialize(At(self)).map_err(|misfit| {
            let place = misfit.place.as_ref().unwrap_or(&self.place).to_string();
            let mut key = String::new();
            for name in misfit.keys.iter().rev() {
                // `[0]` of a list needs no dot before it.
                if !key.is_empty() && !name.starts_with('[') {
                    key.push('.');
                }
                key.push_str(name);
            }
            let message = if key.is_empty() {
                misfit.message
            } else {
                format!("`{key}`: {}", misfit.message)
            };
            ConfigError::Parse { place, message }
        })
    }
}

/// A node that is read.
#[derive(Clone, Copy)]
struct At<'de>(&'de Node);

impl<'de> de::Deserializer<'de> for At<'de> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match &self.0.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(truth) => visitor.visit_bool(*truth),
            Value::Int(int) => match (i64::try_from(*int), u64::try_from(*int)) {
                (Ok(int), _) => visitor.visit_i64(int),
                (_, Ok(int)) => visitor.visit_u64(int),
                _ => Err(de::Error::custom(format!("{int} is too large a number"))),
            },
            Value::Float(float) => visitor.visit_f64(*float),
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::List(items) => visitor.visit_seq(List { items, at: 0 }),
            Value::Table(entries) => visitor.visit_map(Table { entries, at: 0 }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.0.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match &self.0.value {
            Value::Text(word) => {
                let word: StrDeserializer<'_, Misfit> = word.as_str().into_deserializer();
                visitor.visit_enum(word)
            }
            _ => Err(de::Error::custom(format!("expected one of {}", words.join(", ")))),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

struct List<'de> {
    items: &'de [Node],
    at: usize,
}

impl<'de> SeqAccess<'de> for List<'de> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        let Some(node) = self.items.get(self.at) else {
            return Ok(None);
        };
        let key = format!("[{}]", self.at);
        self.at += 1;
        seed.deserialize(At(node))
            .map(Some)
            .map_err(|e| e.within(key, &node.place))
    }
}

struct Table<'de> {
    entries: &'de [(String, Node)],
    at: usize,
}

impl<'de> MapAccess<'de> for Table<'de> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        let Some((key, node)) = self.entries.get(self.at) else {
            return Ok(None);
        };
        let key: StrDeserializer<'_, Misfit> = key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|mut misfit| {
            misfit.place.get_or_insert_with(|| node.place.clone());
            misfit
        })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let Some((key, node)) = self.entries.get(self.at) else {
            return Err(de::Error::custom("a value is missing"));
        };
        self.at += 1;
        seed.deserialize(At(node))
            .map_err(|e| e.within(key.as_str(), &node.place))
    }
}
