"""Whole jobs on a GPU beside the same job on the CPU, and the table of what ran where: called by run.sh."""

import argparse
import datetime
import json
import os
import pathlib
import signal
import subprocess
import time

JOB = """
version = 1
name = "gpu"
seed = 1
[model]
name = "demo-64"
[data]
sources = [{{ name = "noto", shards = "{data}" }}]
[train]
global_batch = 256
lanes = 32
epochs = 3
lr = 1e-3
wd = 0.2
warmup = 10
grad_clip_norm = 1.0
state_hash_steps = 5
device = "{device}"
precision = "{precision}"
[workers]
min = 1
max = 4
[checkpoint]
every_samples = 2048
"""
# Losses are compared this far: beyond it, rounding has grown with the weights.
STEPS = 8


class Jobs:
    def __init__(self, args):
        self.args = args
        self.work = pathlib.Path(args.work)

    def run(self, name, device, precision, workers, kill_at=None):
        """Runs a job to its end; its losses by step, its audit and what is odd about it."""
        job, folder = self.work / f"{name}.toml", self.work / "runs" / name
        data = self.work / "data/noto/train-{00000..00005}.tar"
        job.write_text(JOB.format(data=data, device=device, precision=precision))
        command = [f"{self.args.bin}/argosy", "run", str(job), "--run", str(folder), "--workers", str(workers)]
        began = time.monotonic()
        with open(f"{self.args.out}/jobs.log", "ab") as log:
            log.write(f"\n== {name}\n".encode())
            log.flush()
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            if kill_at is not None:
                self.kill(folder, process, kill_at)
            try:
                code = process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                process.kill()
                code = "none after 120 s"
        audit = subprocess.run(
            [f"{self.args.bin}/argosy", "audit", str(folder), "-o", "json"], capture_output=True, text=True, check=False
        )
        events = read_events(folder)
        steps = [e["report"] for e in events if e["event"] == "step_done"]
        losses = {}
        for step in steps:
            losses.setdefault(step["name"]["step"], step["loss"])
        phases = sorted(steps, key=lambda s: sum(s["phase_ms"].values()))
        result = {
            "name": name, "device": device, "precision": precision, "workers": workers, "exit": code,
            "seconds": round(time.monotonic() - began, 1), "audit_exit": audit.returncode, "losses": losses,
            "generations": sum(e["event"] == "generation_formed" for e in events),
            "median_step_ms": phases[len(phases) // 2]["phase_ms"] if phases else None,
        }
        try:
            report = json.loads(audit.stdout)
            result["audit"] = {k: report.get(k) for k in ("finished", "positions", "trained", "masked")}
        except ValueError:
            result["audit"] = (audit.stdout + audit.stderr)[-500:]
        print(json.dumps({k: v for k, v in result.items() if k != "losses"}), flush=True)
        return result

    def kill(self, folder, process, step):
        """SIGKILL for the worker that was started last, once `step` is applied."""
        until = time.monotonic() + 90
        while time.monotonic() < until and process.poll() is None:
            events = read_events(folder)
            if any(e["event"] == "step_done" and e["report"]["name"]["step"] >= step for e in events):
                os.kill([e["pid"] for e in events if e["event"] == "worker_spawned"][-1], signal.SIGKILL)
                return
            time.sleep(0.05)


def read_events(folder):
    try:
        lines = (folder / "events.jsonl").read_text().splitlines()
    except OSError:
        return []
    out = []
    for line in lines:
        try:
            out.append(json.loads(line))
        except ValueError:
            pass  # not whole yet
    return out


def verdict(path, bound, run, reference, generations):
    """One line of the report: ended, audited, losses as the reference's."""
    shared = [step for step in range(1, STEPS + 1) if step in run["losses"] and step in reference["losses"]]
    apart = [abs(run["losses"][s] - reference["losses"][s]) / max(1.0, reference["losses"][s]) for s in shared]
    worst = max(apart, default=float("inf"))
    audited = run["audit_exit"] == 0 and isinstance(run["audit"], dict) and run["audit"]["finished"] is True
    holds = run["exit"] == 0 and audited and len(shared) == STEPS and worst <= bound and run["generations"] >= generations
    note = f"exit {run['exit']}, audit {run['audit_exit']}, {run['generations']} generations, {run['seconds']} s"
    return {"path": path, "holds": holds, "bound": bound, "loss": worst, "note": note}


def main():
    parser = argparse.ArgumentParser()
    for flag in ("--bin", "--work", "--check", "--out"):
        parser.add_argument(flag, required=True)
    args = parser.parse_args()
    try:
        check = json.loads(pathlib.Path(args.check).read_text())
    except (OSError, ValueError) as error:
        check = {"device": "cuda:0", "gpu": None, "holds": False, "paths": [], "speed": [], "error": str(error)}
    jobs = Jobs(args)
    cpu = jobs.run("cpu-one", "cpu", "fp32", 1)
    one = jobs.run("gpu-one", "cuda:0", "fp32", 1)
    two = jobs.run("gpu-two", "cuda:0", "fp32", 2)
    killed = jobs.run("gpu-two-killed", "cuda:0", "fp32", 2, kill_at=6)
    half = jobs.run("gpu-two-bf16", "cuda:0", "amp_bf16", 2)
    paths = check["paths"] + [
        verdict("job with one worker: audit, losses as on the CPU", 1e-4, one, cpu, 1),
        verdict("job with two workers on one GPU, ring: audit, losses as on the CPU", 1e-4, two, cpu, 1),
        verdict("the same, one worker killed: audit, losses as on the CPU", 1e-4, killed, cpu, 2),
        verdict("the same in bf16 autocast", 2e-2, half, cpu, 1),
    ]
    commit = pathlib.Path(args.bin, "COMMIT")
    report = dict(check, paths=paths, date=str(datetime.date.today()), jobs=[cpu, one, two, killed, half])
    report["commit"] = commit.read_text().strip() if commit.exists() else "unknown"
    report["holds"] = bool(check["paths"]) and all(p["holds"] for p in paths)
    out = pathlib.Path(args.out)
    (out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")
    for path in paths:
        print("holds" if path["holds"] else "FAILS", path["path"], path.get("note") or "")
    print("all hold" if report["holds"] else "NOT all hold")


if __name__ == "__main__":
    main()
