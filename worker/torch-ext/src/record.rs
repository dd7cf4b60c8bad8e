//! Operators as libtorch ran them: when, how long, how much work (for profiles).
#![allow(unsafe_code)] // the C++ border

use std::ffi::{CStr, c_char};

/// Layout of `argosy_ext_span` in `cpp/record.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawSpan {
    name: [c_char; 64],
    start_ns: i64,
    end_ns: i64,
    flops: f64,
    bytes: f64,
    thread: u64,
    backward: u64,
}

unsafe extern "C" {
    fn argosy_ext_now_ns() -> i64;
    fn argosy_ext_record_start();
    fn argosy_ext_record_mark(name: *const c_char);
    fn argosy_ext_record_stop();
    fn argosy_ext_record_read(out: *mut RawSpan, most: usize) -> usize;
}

/// One operator, or one node of the backward graph with the operators inside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// `aten::mm`, or the node's name.
    pub name: String,
    /// On the clock of [`now_ns`].
    pub start_ns: i64,
    pub end_ns: i64,
    /// Multiplications and additions, where the operator is a matrix product; 0 elsewhere.
    pub flops: f64,
    /// Bytes of its inputs and outputs.
    pub bytes: f64,
    /// Thread that ran it.
    pub thread: u64,
    /// A node of the backward graph.
    pub backward: bool,
}

/// Nanoseconds on the clock of the spans.
#[must_use]
pub fn now_ns() -> i64 {
    // SAFETY: takes nothing, reads a clock.
    unsafe { argosy_ext_now_ns() }
}

/// Notes a moment in a recording, on this thread; nothing without one.
pub fn mark(name: &CStr) {
    // SAFETY: a zero-terminated string that is copied before the call ends.
    unsafe { argosy_ext_record_mark(name.as_ptr()) };
}

/// Operators are recorded, on all threads, while this lives. Begin before other threads compute.
#[derive(Debug)]
pub struct Recording(());

impl Recording {
    /// Forgets what was recorded before and begins.
    #[must_use]
    pub fn start() -> Self {
        // SAFETY: takes nothing; guards its list with a lock.
        unsafe { argosy_ext_record_start() };
        Self(())
    }

    /// What was recorded so far (at most four million spans), in the order of ends.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        // SAFETY: with a null pointer it only counts.
        let count = unsafe { argosy_ext_record_read(std::ptr::null_mut(), 0) };
        let mut raw: Vec<RawSpan> = Vec::with_capacity(count);
        // SAFETY: room for `count` spans; it writes at most that many and tells how many, all of them whole.
        unsafe {
            let got = argosy_ext_record_read(raw.as_mut_ptr(), count);
            raw.set_len(got.min(count));
        }
        raw.iter().map(Span::of).collect()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // SAFETY: takes nothing; the caller's threads have ended their work with the recording.
        unsafe { argosy_ext_record_stop() };
    }
}

impl Span {
    fn of(raw: &RawSpan) -> Self {
        // SAFETY: the shim leaves the last of 64 bytes zero.
        let name = unsafe { CStr::from_ptr(raw.name.as_ptr()) };
        Self {
            name: name.to_string_lossy().into_owned(),
            start_ns: raw.start_ns,
            end_ns: raw.end_ns,
            flops: raw.flops,
            bytes: raw.bytes,
            thread: raw.thread,
            backward: raw.backward != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn recorded_product_tells_its_time_and_work() {
        let recording = Recording::start();
        let a = Tensor::ones([3, 5], (Kind::Float, Device::Cpu));
        let b = Tensor::ones([5, 7], (Kind::Float, Device::Cpu));
        let before = now_ns();
        let _ = a.f_mm(&b).unwrap();
        let after = now_ns();
        let spans = recording.spans();
        let found = spans.iter().find(|s| s.name == "aten::mm" && s.flops == 210.0);
        let span = found.unwrap_or_else(|| panic!("{spans:?}"));
        assert_eq!(span.bytes, 4.0 * (15.0 + 35.0 + 21.0));
        assert!(before <= span.start_ns && span.start_ns <= span.end_ns && span.end_ns <= after);
    }
}
