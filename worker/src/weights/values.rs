//! What a pickle may hold: values, the few globals that stand for data, and storages and views by description.

/// Most objects of one pickle: some hundred for every tensor of the largest model and its optimiser.
pub(super) const OBJECTS_MAX: usize = 4 << 20;

/// A value: small ones themselves, others by their number in [`Heap`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    /// (PyTorch's old files begin with a number of ten bytes.)
    Int(i128),
    Float(f64),
    Object(usize),
}

/// What is more than a number.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Object {
    Text(String),
    Bytes(usize),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    /// A name that the caller allowed.
    Global(Known),
    /// Numbers that lie elsewhere, by their persistent id: (dtype's storage, key, elements).
    Storage {
        kind: StorageKind,
        key: String,
        elements: u64,
    },
    /// A view of a storage.
    Tensor(View),
    /// An object of a compiled model: its attributes.
    Module(Vec<(Value, Value)>),
}

/// A tensor as pickled: strides and offset in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) storage: usize,
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

/// Every global that is taken, as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(StorageKind),
    /// `torch.jit._pickle.build_*`: a list that says what it holds.
    TypedList,
    /// `torch.jit._pickle.restore_type_tag`: a value that says what it is.
    TypeTag,
    /// A class of a compiled model.
    Module,
}

/// Element types of storages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StorageKind {
    F16,
    BF16,
    F32,
    F64,
    I8,
    U8,
    I16,
    I32,
    I64,
    Bool,
}

impl Known {
    /// The allow-list. `compiled` adds what only TorchScript archives hold.
    pub(super) fn of(module: &str, name: &str, compiled: bool) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "HalfStorage") => Self::Storage(StorageKind::F16),
            ("torch", "BFloat16Storage") => Self::Storage(StorageKind::BF16),
            ("torch", "FloatStorage") => Self::Storage(StorageKind::F32),
            ("torch", "DoubleStorage") => Self::Storage(StorageKind::F64),
            ("torch", "CharStorage") => Self::Storage(StorageKind::I8),
            ("torch", "ByteStorage") => Self::Storage(StorageKind::U8),
            ("torch", "ShortStorage") => Self::Storage(StorageKind::I16),
            ("torch", "IntStorage") => Self::Storage(StorageKind::I32),
            ("torch", "LongStorage") => Self::Storage(StorageKind::I64),
            ("torch", "BoolStorage") => Self::Storage(StorageKind::Bool),
            ("torch.jit._pickle", "build_intlist" | "build_tensorlist" | "build_doublelist" | "build_boollist")
                if compiled =>
            {
                Self::TypedList
            }
            ("torch.jit._pickle", "restore_type_tag") if compiled => Self::TypeTag,
            _ if compiled && (module == "__torch__" || module.starts_with("__torch__.")) => Self::Module,
            _ => return None,
        })
    }
}

/// All objects of a pickle.
#[derive(Debug, Default)]
pub(super) struct Heap(Vec<Object>);

impl Heap {
    pub(super) fn get(&self, value: Value) -> Option<&Object> {
        match value {
            Value::Object(at) => self.0.get(at),
            _ => None,
        }
    }

    pub(super) fn object(&self, at: usize) -> Option<&Object> {
        self.0.get(at)
    }

    pub(super) fn text(&self, value: Value) -> Option<&str> {
        match self.get(value)? {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Entries of a dictionary or attributes of a module.
    pub(super) fn entries(&self, value: Value) -> Option<&[(Value, Value)]> {
        match self.get(value)? {
            Object::Dict(entries) | Object::Module(entries) => Some(entries),
            _ => None,
        }
    }

    /// All storages.
    pub(super) fn storages(&self) -> impl Iterator<Item = (StorageKind, &str, u64)> {
        self.0.iter().filter_map(|object| match object {
            Object::Storage { kind, key, elements } => Some((*kind, key.as_str(), *elements)),
            _ => None,
        })
    }

    pub(super) fn items(&self, value: Value) -> Option<&[Value]> {
        match self.get(value)? {
            Object::List(items) | Object::Tuple(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut Object> {
        self.0.get_mut(at)
    }

    pub(super) fn add(&mut self, object: Object) -> Result<Value, String> {
        if self.0.len() >= OBJECTS_MAX {
            return Err(format!("more than {OBJECTS_MAX} objects"));
        }
        self.0.push(object);
        Ok(Value::Object(self.0.len() - 1))
    }
}
