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
    /// Multiplications and additions, where the operator is a matrix product or a convolution; 0 elsewhere.
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
        drop(recording);
        bytes_are_those_that_move();
        convolutions_count_once_each_way();
    }

    /// In the same test: a recording is the process's.
    fn convolutions_count_once_each_way() {
        let float = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        // Two of eight output channels see two of four input channels each; a stride of 2 over 10 by 12 gives 5 by 6.
        let (x, weight) = (float(&[3, 4, 10, 12]), float(&[8, 2, 3, 3]));
        let recording = Recording::start();
        let y = x.f_conv2d(&weight, None::<&Tensor>, [2, 2], [1, 1], [1, 1], 2).unwrap();
        assert_eq!(y.size(), [3, 8, 5, 6]);
        let sum = |spans: &[Span]| spans.iter().map(|s| s.flops).sum::<f64>();
        let once = 2.0 * (3 * 8 * 5 * 6) as f64 * (2 * 3 * 3) as f64;
        assert_eq!(sum(&recording.spans()), once);
        drop(recording);
        let recording = Recording::start();
        y.sum(Kind::Float).backward();
        assert_eq!(sum(&recording.spans()), 2.0 * once, "{:?}", recording.spans());
        drop(recording);
        // The pictures themselves want no gradient.
        let y = x
            .detach()
            .f_conv2d(&weight, None::<&Tensor>, [2, 2], [1, 1], [1, 1], 2)
            .unwrap();
        let recording = Recording::start();
        y.sum(Kind::Float).backward();
        assert_eq!(sum(&recording.spans()), once);
    }

    /// In the same test: a recording is the process's.
    fn bytes_are_those_that_move() {
        let recording = Recording::start();
        let float = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
        let (table, rows) = (float(&[1000, 7]), Tensor::from_slice(&[3i64, 5]));
        let picked = table.f_index_select(0, &rows).unwrap();
        let _ = table.shallow_clone().f_index_add_(0, &rows, &picked).unwrap();
        let mut place = float(&[11, 13]);
        place.f_copy_(&float(&[11, 13])).unwrap();
        let (a, b) = (float(&[3, 5]), float(&[5, 9]));
        let _ = a.f_mm_out(&float(&[3, 9]), &b).unwrap();
        let _ = float(&[17, 1]).f_expand([17, 19], false).unwrap().f_exp().unwrap();
        let _ = float(&[23]).f_add_(&float(&[23])).unwrap();
        let spans = recording.spans();
        for (name, bytes) in [
            ("aten::index_select", 2 * 8 + 4 * (14 + 14)),
            // Ids, what is added, and the rows added to: read and written.
            ("aten::index_add_", 2 * 8 + 3 * 4 * 14),
            ("aten::copy_", 4 * 2 * 143),
            ("aten::mm", 4 * (15 + 45 + 27)),
            ("aten::exp", 4 * (17 + 17 * 19)),
            ("aten::add_", 4 * 3 * 23),
        ] {
            let of_name: Vec<f64> = spans.iter().filter(|s| s.name == name).map(|s| s.bytes).collect();
            assert!(
                of_name.contains(&f64::from(bytes)),
                "{name}: {of_name:?} has no {bytes}"
            );
        }
    }
}
