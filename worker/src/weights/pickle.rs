//! A reader of Python's pickles that runs nothing: it knows the opcodes PyTorch writes, and names become data or an error.
//!
//! Objects lie in one list and refer to each other by number, as Python's do by reference; so a dictionary that is filled
//! after it was remembered is the same dictionary everywhere. Nothing is recursive: a pickle cannot exhaust the stack.

use super::values::{Heap, Known, OBJECTS_MAX, Object, Value, View};
use std::collections::BTreeMap;

/// Most values on the stack; a list is on it whole before it is made.
const STACK_MAX: usize = 4 << 20;
/// Longest name of a global.
const NAME_MAX: usize = 256;

/// One pickle read to its end.
#[derive(Debug)]
pub(super) struct Unpickled {
    pub(super) heap: Heap,
    pub(super) root: Value,
    /// Bytes it took.
    pub(super) len: usize,
}

/// Reads the pickle that `bytes` begin with. `compiled` allows what TorchScript archives hold as well.
///
/// # Errors
/// Names the global, opcode or place that is not taken.
pub(super) fn read(bytes: &[u8], compiled: bool) -> Result<Unpickled, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        compiled,
        heap: Heap::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: BTreeMap::new(),
        copied: 0,
    };
    loop {
        let (at, code) = (machine.at, machine.byte()?);
        if code == b'.' {
            let root = machine.pop()?;
            return Ok(Unpickled {
                heap: machine.heap,
                root,
                len: machine.at,
            });
        }
        machine.step(code).map_err(|why| format!("byte {at}: {why}"))?;
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    compiled: bool,
    heap: Heap,
    stack: Vec<Value>,
    /// Heights of the stack at which a mark lies.
    marks: Vec<usize>,
    memo: BTreeMap<u64, Value>,
    /// Values copied from one object into another: few, unless somebody wants our memory.
    copied: usize,
}

type Done = Result<(), String>;

impl<'a> Machine<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(len);
        let part = end.and_then(|end| self.bytes.get(self.at..end));
        let part = part.ok_or_else(|| format!("the pickle ends inside {len} bytes"))?;
        self.at += len;
        Ok(part)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    /// An unsigned number of `len <= 8` bytes.
    fn number(&mut self, len: usize) -> Result<u64, String> {
        Ok(self
            .take(len)?
            .iter()
            .rev()
            .fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    fn length(&mut self, len: usize) -> Result<usize, String> {
        let length = self.number(len)?;
        usize::try_from(length).map_err(|_| format!("a length of {length}"))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(NAME_MAX + 1).position(|b| *b == b'\n');
        let end = end.ok_or_else(|| format!("a name of more than {NAME_MAX} bytes"))?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| "a name that is not UTF-8".into())
    }

    fn text(&mut self, len: usize) -> Done {
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| "text that is not UTF-8")?;
        self.make(Object::Text(text.to_owned()))
    }

    fn push(&mut self, value: Value) -> Done {
        if self.stack.len() >= STACK_MAX {
            return Err(format!("more than {STACK_MAX} values at once"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        // What lies below a mark belongs to whoever set it.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("a value is taken where none is".into());
        }
        self.stack.pop().ok_or_else(|| "a value is taken where none is".into())
    }

    fn last(&self) -> Result<Value, String> {
        self.stack.last().copied().ok_or_else(|| "the stack is empty".into())
    }

    fn make(&mut self, object: Object) -> Done {
        let value = self.heap.add(object)?;
        self.push(value)
    }

    fn since_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or("a mark is taken where none is")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn spend(&mut self, values: usize) -> Done {
        self.copied = self.copied.saturating_add(values.max(1));
        if self.copied > STACK_MAX {
            return Err(format!("more than {STACK_MAX} values are copied"));
        }
        Ok(())
    }

    fn remember(&mut self, key: u64) -> Done {
        if self.memo.len() >= OBJECTS_MAX {
            return Err(format!("more than {OBJECTS_MAX} remembered values"));
        }
        let value = self.last()?;
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Done {
        let value = self.memo.get(&key).copied();
        self.push(value.ok_or_else(|| format!("value {key} was never remembered"))?)
    }

    fn step(&mut self, code: u8) -> Done {
        match code {
            // Protocol and frames.
            0x80 => match self.byte()? {
                2..=5 => Ok(()),
                other => Err(format!("pickle protocol {other}, 2 to 5 expected")),
            },
            0x95 => self.take(8).map(drop),
            // The stack.
            b'(' => {
                self.marks.push(self.stack.len());
                if self.marks.len() > STACK_MAX {
                    return Err(format!("more than {STACK_MAX} marks"));
                }
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.since_mark().map(drop),
            b'2' => self.last().and_then(|value| self.push(value)),
            // The memo.
            b'q' => self.number(1).and_then(|key| self.remember(key)),
            b'r' => self.number(4).and_then(|key| self.remember(key)),
            0x94 => self.remember(self.memo.len() as u64),
            b'h' => self.number(1).and_then(|key| self.recall(key)),
            b'j' => self.number(4).and_then(|key| self.recall(key)),
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' | b'M' | b'J' | 0x8a | 0x8b | b'G' => self.constant(code),
            b'X' | 0x8c | 0x8d | b'T' | b'U' | b'B' | b'C' => self.string(code),
            b']' | b')' | b'}' | b'l' | b't' | b'd' | 0x85..=0x87 => self.container(code),
            b'a' | b'e' | b's' | b'u' => self.fill(code),
            b'c' | 0x93 => self.global(code),
            b'Q' => self.persistent(),
            b'R' | 0x81 => self.call(),
            b'b' => self.build(),
            _ => Err(format!("opcode {code:#04x}, which PyTorch's files do not hold")),
        }
    }

    fn constant(&mut self, code: u8) -> Done {
        let value = match code {
            b'K' => Value::Int(self.number(1)?.into()),
            b'M' => Value::Int(self.number(2)?.into()),
            b'J' => Value::Int((self.number(4)? as u32 as i32).into()),
            b'G' => {
                let bits = self.take(8)?.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
                Value::Float(f64::from_bits(bits))
            }
            _ => {
                let len = if code == 0x8a { self.length(1)? } else { self.length(4)? };
                if len > 16 {
                    return Err(format!("a whole number of {len} bytes, at most 16 are read"));
                }
                let bytes = self.take(len)?;
                let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
                let fill = if negative { -1i128 } else { 0 };
                Value::Int(bytes.iter().rev().fold(fill, |n, byte| n << 8 | i128::from(*byte)))
            }
        };
        self.push(value)
    }

    fn string(&mut self, code: u8) -> Done {
        let bytes_of_length = match code {
            0x8c | b'U' | b'C' => 1,
            0x8d => 8,
            _ => 4,
        };
        let len = self.length(bytes_of_length)?;
        if matches!(code, b'B' | b'C') {
            self.take(len)?;
            return self.make(Object::Bytes(len));
        }
        self.text(len)
    }

    fn container(&mut self, code: u8) -> Done {
        let object = match code {
            b']' => Object::List(Vec::new()),
            b')' => Object::Tuple(Vec::new()),
            b'}' => Object::Dict(Vec::new()),
            b'l' => Object::List(self.since_mark()?),
            b't' => Object::Tuple(self.since_mark()?),
            b'd' => Object::Dict(pairs(&self.since_mark()?)?),
            _ => {
                let mut items = Vec::new();
                for _ in 0..=(code - 0x85) {
                    items.push(self.pop()?);
                }
                items.reverse();
                Object::Tuple(items)
            }
        };
        self.make(object)
    }

    fn fill(&mut self, code: u8) -> Done {
        let new = match code {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.since_mark()?,
        };
        let Value::Object(at) = self.last()? else {
            return Err("items are added to a number".into());
        };
        match (code, self.heap.get_mut(at)) {
            (b'a' | b'e', Some(Object::List(items))) => items.extend(new),
            (b's' | b'u', Some(Object::Dict(entries))) => entries.extend(pairs(&new)?),
            _ => return Err("items are added to what is neither list nor dictionary".into()),
        }
        Ok(())
    }

    fn global(&mut self, code: u8) -> Done {
        let (module, name) = if code == b'c' {
            (self.line()?.to_owned(), self.line()?.to_owned())
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            let word = |value| self.heap.text(value).map(str::to_owned).ok_or("a name that is no text");
            (word(module)?, word(name)?)
        };
        let known = Known::of(&module, &name, self.compiled).ok_or_else(|| {
            format!(
                "it wants `{module}.{name}`, which is not read: only tensors, dictionaries, lists, numbers and strings are; \
                 save the state dict alone with PyTorch, or as safetensors"
            )
        })?;
        self.make(Object::Global(known))
    }

    /// `("storage", type, key, location, elements)`, old files with one more, which must be `None`.
    fn persistent(&mut self) -> Done {
        let id = self.pop()?;
        let items = self.heap.items(id).filter(|items| items.len() <= 8);
        let items = items.unwrap_or_default().to_vec();
        let kind = |value| match self.heap.get(value) {
            Some(Object::Global(Known::Storage(kind))) => Some(*kind),
            _ => None,
        };
        let storage = match items[..] {
            [word, of, key, _, Value::Int(elements), ref rest @ ..]
                if self.heap.text(word) == Some("storage") && matches!(rest, [] | [Value::None]) =>
            {
                let key = self.heap.text(key).filter(|key| key.len() <= NAME_MAX);
                kind(of).zip(key.map(str::to_owned)).zip(u64::try_from(elements).ok())
            }
            _ => None,
        };
        let ((kind, key), elements) = storage.ok_or("a reference that is not to a plain storage")?;
        self.make(Object::Storage { kind, key, elements })
    }

    /// `REDUCE` and `NEWOBJ`: the few calls that stand for data.
    fn call(&mut self) -> Done {
        let (args, callee) = (self.pop()?, self.pop()?);
        let args = match self.heap.get(args) {
            Some(Object::Tuple(args)) if args.len() <= 8 => args.clone(),
            _ => return Err("arguments that are no tuple of at most 8".into()),
        };
        let Some(Object::Global(known)) = self.heap.get(callee) else {
            return Err("something is called that is no name".into());
        };
        match (*known, &args[..]) {
            (Known::OrderedDict, []) => self.make(Object::Dict(Vec::new())),
            (Known::OrderedDict, [items]) => {
                self.spend(self.heap.items(*items).map_or(0, <[Value]>::len))?;
                let listed = self.heap.items(*items).unwrap_or_default();
                let pair = |item: &Value| match self.heap.items(*item) {
                    Some(&[key, value]) => Ok((key, value)),
                    _ => Err("an OrderedDict of what are no pairs".to_owned()),
                };
                let entries = listed.iter().map(pair).collect::<Result<_, String>>()?;
                self.make(Object::Dict(entries))
            }
            (Known::RebuildTensor, [storage, Value::Int(offset), shape, strides, ..]) => {
                let view = self.view(*storage, *offset, *shape, *strides)?;
                self.make(Object::Tensor(view))
            }
            // A parameter is its tensor.
            (Known::RebuildParameter, [data, ..]) if matches!(self.heap.get(*data), Some(Object::Tensor(_))) => {
                self.push(*data)
            }
            (Known::TypedList | Known::TypeTag, [value, ..]) => self.push(*value),
            (Known::Module, []) => self.make(Object::Module(Vec::new())),
            (known, args) => Err(format!("{known:?} with {} arguments that do not fit", args.len())),
        }
    }

    fn view(&self, storage: Value, offset: i128, shape: Value, strides: Value) -> Result<View, String> {
        let Value::Object(at) = storage else {
            return Err("a tensor without a storage".into());
        };
        let Some(Object::Storage { elements, .. }) = self.heap.object(at) else {
            return Err("a tensor without a storage".into());
        };
        let sizes = |value: Value| -> Result<Vec<u64>, String> {
            let items = self.heap.items(value).ok_or("a shape that is no tuple")?;
            let size = |item: &Value| match item {
                Value::Int(n) => u64::try_from(*n).ok().filter(|n| *n <= 1 << 48),
                _ => None,
            };
            let list: Option<Vec<u64>> = items.iter().map(size).collect();
            let list = list.filter(|list| list.len() <= 8);
            list.ok_or_else(|| "a shape or strides of what are no sizes, or of more than 8".to_owned())
        };
        let (shape, strides) = (sizes(shape)?, sizes(strides)?);
        let offset = u64::try_from(offset).map_err(|_| "a tensor that begins before its storage")?;
        if shape.len() != strides.len() {
            return Err(format!("a tensor of shape {shape:?} with strides {strides:?}"));
        }
        if shape.iter().all(|size| *size > 0) {
            let reach = shape.iter().zip(&strides).try_fold(offset, |last, (size, stride)| {
                (size - 1).checked_mul(*stride).and_then(|step| last.checked_add(step))
            });
            if reach.is_none_or(|last| last >= *elements) {
                return Err(format!(
                    "a tensor of shape {shape:?}, strides {strides:?} and offset {offset} reaches beyond its storage of \
                     {elements} elements"
                ));
            }
        }
        Ok(View {
            storage: at,
            offset,
            shape,
            strides,
        })
    }

    /// Attributes: of a compiled model's object its content, of a dictionary (`_metadata`) nothing that is needed.
    fn build(&mut self) -> Done {
        let (state, Value::Object(at)) = (self.pop()?, self.last()?) else {
            return Err("attributes for a number".into());
        };
        self.spend(self.heap.entries(state).map_or(0, <[_]>::len))?;
        let attributes = match self.heap.get(state) {
            Some(Object::Dict(entries)) => entries.clone(),
            _ => return Err("attributes that are no dictionary".into()),
        };
        match self.heap.get_mut(at) {
            Some(Object::Module(own)) => own.extend(attributes),
            Some(Object::Dict(_)) => {}
            _ => return Err("attributes for what has none".into()),
        }
        Ok(())
    }
}

fn pairs(values: &[Value]) -> Result<Vec<(Value, Value)>, String> {
    let (pairs, rest) = values.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("a key without a value".into());
    }
    Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(bytes: &[u8]) -> Result<(Heap, Value), String> {
        read(bytes, false).map(|done| (done.heap, done.root))
    }

    #[test]
    fn pickle_numbers_and_strings_are_read_as_python_writes_them() {
        // pickle.dumps((1, -2, 300, 2**40, -2**70, 1.5, None, True, "é"), protocol=2)
        let bytes = b"\x80\x02(K\x01J\xfe\xff\xff\xffM\x2c\x01\x8a\x06\x00\x00\x00\x00\x00\x01\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\xc0G?\xf8\x00\x00\x00\x00\x00\x00N\x88X\x02\x00\x00\x00\xc3\xa9tq\x00.";
        let (heap, value) = root(bytes).unwrap();
        let items = heap.items(value).unwrap();
        let numbers = [1, -2, 300, 1 << 40, -(1i128 << 70)].map(Value::Int);
        assert_eq!(items[..5], numbers);
        assert_eq!(items[5..8], [Value::Float(1.5), Value::None, Value::Bool(true)]);
        assert_eq!(heap.text(items[8]), Some("é"));
    }

    #[test]
    fn pickle_dictionary_filled_after_it_was_remembered_is_one() {
        // d = {}; (d, d) with d["a"] = 1 set between the two.
        let bytes = b"\x80\x02}q\x00h\x00(U\x01aK\x01u\x86.";
        let (heap, value) = root(bytes).unwrap();
        let items = heap.items(value).unwrap();
        assert_eq!(items[0], items[1]);
        assert_eq!(heap.entries(items[0]).unwrap().len(), 1);
    }

    #[test]
    fn pickle_global_that_is_not_allowed_is_named_and_nothing_runs() {
        for (bytes, name) in [
            (&b"\x80\x02cos\nsystem\nU\x02ls\x85R."[..], "os.system"),
            (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval"),
            (b"\x80\x02cbuiltins\n__import__\n.", "builtins.__import__"),
            (b"\x80\x02c__torch__\nCLIP\n.", "__torch__.CLIP"),
            (
                b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n.",
                "torch._utils._rebuild_tensor_v3",
            ),
        ] {
            let error = root(bytes).unwrap_err();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
    }

    #[test]
    fn pickle_broken_or_unusual_is_an_error_with_its_place() {
        for (bytes, why) in [
            (&b"\x80\x02"[..], "ends inside"),
            (b"\x80\x01.", "protocol 1"),
            (b"\x80\x020.", "byte 2"),
            (b"\x80\x02(0.", "none is"),
            (b"\x80\x02t.", "mark"),
            (b"\x80\x02h\x07.", "never remembered"),
            (b"\x80\x02K\x01K\x02a.", "number"),
            (b"\x80\x02i.", "0x69"),
            (b"\x80\x02\x8a\x20.", "32 bytes"),
            (b"\x80\x02X\xff\xff\xff\xff.", "ends inside"),
            (b"\x80\x02(K\x01d.", "without a value"),
            (b"\x80\x02U\x01aQ.", "plain storage"),
        ] {
            let error = root(bytes).unwrap_err();
            assert!(error.contains(why), "{error} lacks {why}");
        }
    }
}
