"""TensorBoard's side of our event files.

scalars.py write OUT.tfevents    the golden of ops/cli/tests/goldens: some scalars as torch's SummaryWriter writes them
scalars.py read FOLDER           what TensorBoard's own reader finds in FOLDER, as JSON: {tag: [[step, value], ...]}
"""
import glob
import json
import shutil
import sys
import tempfile


def write(out):
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder, purge_step=3)
        writer.add_scalar("train/loss", 5.7290645, 3, walltime=1700000001.5)
        writer.add_scalar("val/imagenet-zeroshot-val-top1", 0.125, 300, walltime=1700000002.0)
        writer.add_scalar("train/lr", 1e-4, 4000000000, walltime=1700000003.0)
        writer.close()
        (file,) = glob.glob(folder + "/*")
        shutil.copy(file, out)


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(folder, size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags}))


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](sys.argv[2])
