//! Wall clocks that somebody sets while a run is under way: nothing may look at them.

use crate::harness::{Run, my_turn, spawned, text};
use crate::leave::{EXACT, undisturbed, weights_in};
use crate::{assert_all_trained, stage, wait_for_step};
use argosy_common::events::RunEvent;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

const EPOCHS: u32 = 12;
const HOUR_S: i64 = 3_600;

/// Says another wall time than there is; the clocks that count on are left alone. Loaded before libc.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long off(void) {
    const char *path = getenv("ARGOSY_TEST_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    char digits[32] = {0};
    if (fd < 0) return 0;
    ssize_t got = read(fd, digits, sizeof digits - 1);
    close(fd);
    return got > 0 ? atol(digits) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += off();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec fine;
    (void)zone;
    int failed = clock_gettime(CLOCK_REALTIME, &fine);
    now->tv_sec = fine.tv_sec;
    now->tv_usec = fine.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *out) {
    struct timespec fine;
    clock_gettime(CLOCK_REALTIME, &fine);
    if (out) *out = fine.tv_sec;
    return fine.tv_sec;
}
"#;

/// A wall clock of its own for the processes that have its environment.
pub(crate) struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
        if !library.exists() {
            std::fs::write(&source, SHIM).expect("a source");
            let built = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
                .args(["-shared", "-fPIC", "-O1", "-o", text(&library), text(&source)])
                .output()
                .expect("a C compiler");
            assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        }
        let clock = Self {
            library,
            file: dir.join(format!("{name}.clock")),
        };
        clock.set(0);
        clock
    }

    /// Off by so many seconds from now on.
    pub(crate) fn set(&self, seconds: i64) {
        // Whole or not at all: whoever looks meanwhile must not see half a number.
        let next = self.file.with_extension("next");
        std::fs::write(&next, seconds.to_string()).expect("a clock");
        std::fs::rename(&next, &self.file).expect("a clock");
    }

    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("LD_PRELOAD", text(&self.library).to_owned()),
            ("ARGOSY_TEST_CLOCK", text(&self.file).to_owned()),
        ]
    }
}

#[test]
fn story_run_whose_wall_clock_jumps_an_hour_forward_and_back_is_not_disturbed() {
    let _turn = my_turn();
    let stage = stage(EPOCHS, "[checkpoint]\nevery_samples = 480\nevery_s = 1\n");
    let dir = stage.path("run");
    let clock = Clock::new(stage.dir.path(), "all");
    clock.set(HOUR_S);
    let mut more = EXACT.to_vec();
    more.extend(["--set", "workers.min=2", "--set", "workers.target=2"]);
    let mut run = Run::start_in(&clock.environment(), &stage.job, &dir, 2, &more);
    let began = run.wait_for_event("the run begins", |event| match event {
        RunEvent::RunStarted { unix_ms, .. } => Some(*unix_ms),
        _ => None,
    });
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_millis() as u64;
    assert!(
        began > now + 3_000_000,
        "its clock is not the machine's: {began}, {now}"
    );
    for (step, off) in [(20, -HOUR_S), (40, HOUR_S), (60, 0)] {
        wait_for_step(&mut run, step);
        clock.set(off);
    }
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    let events = run.events();
    let formed = events
        .iter()
        .filter(|e| matches!(e, RunEvent::GenerationFormed { .. }))
        .count();
    assert_eq!(
        (formed, events.iter().filter_map(spawned).count()),
        (1, 2),
        "{}",
        run.dump()
    );
    let ill = |e: &RunEvent| {
        matches!(
            e,
            RunEvent::WorkerLost { .. } | RunEvent::Blamed { .. } | RunEvent::CheckpointRejected { .. }
        )
    };
    assert!(!events.iter().any(ill), "{}", run.dump());
    assert_all_trained(&dir, u64::from(EPOCHS));
    assert!(weights_in(&[], &dir) == undisturbed(&stage), "other bits");
}
