"""Small weight files of every kind that PyTorch and OpenCLIP write, all of one model, and what OpenCLIP makes of them.

    python weights.py make DIR      the goldens of tests/goldens/weights
    python weights.py check HUB...  loads hub folders as OpenCLIP does and prints keys it misses or does not know, and features
"""
import json, os, pathlib, sys, warnings
import torch, open_clip
from open_clip.factory import load_checkpoint
from safetensors.torch import load_file, save_file

VISION = dict(image_size=16, layers=1, width=16, head_width=8, patch_size=4)
TEXT = dict(context_length=6, vocab_size=24, width=16, heads=2, layers=1)
CONFIG = dict(embed_dim=8, vision_cfg=VISION, text_cfg=TEXT)
LARGER = dict(embed_dim=8, vision_cfg=VISION | dict(image_size=28), text_cfg=TEXT | dict(context_length=11))
SMALLER = dict(embed_dim=8, vision_cfg=VISION | dict(image_size=8), text_cfg=TEXT | dict(context_length=4))
CUSTOM = CONFIG | dict(custom_text=True, init_logit_bias=-10.0)


def model_of(config, folder, name):
    path = pathlib.Path(folder) / f"{name}.json"
    path.write_text(json.dumps(config, indent=1) + "\n")
    open_clip.add_model_config(path)
    return open_clip.create_model(name)


def exact(model):
    """Rounds every value so that bfloat16 and float16 hold it exactly: all files of the model then hold the same numbers."""
    with torch.no_grad():
        for p in model.parameters(): p.copy_(p.bfloat16().half().float())


def make(folder):
    out = pathlib.Path(folder); out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(9)
    model = model_of(CONFIG, out, "tiny"); exact(model)
    state = {k: v.clone().contiguous() for k, v in model.state_dict().items()}
    save_file(state, out / "bare.safetensors")
    save_file({k: v.bfloat16() for k, v in state.items()}, out / "bf16.safetensors")
    # As open_clip_train's main.py saves an epoch under DistributedDataParallel, with AdamW's moments of a real step.
    wrapped = torch.nn.Module(); wrapped.module = model
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.0)
    images, texts = torch.randn(3, 3, 16, 16), torch.randint(1, 24, (3, 6))
    f, g, s = model(images, texts)
    open_clip.ClipLoss()(f, g, s).backward(); optimizer.step()
    torch.save(dict(epoch=1, name="tiny", state_dict=wrapped.state_dict(), optimizer=optimizer.state_dict()), out / "epoch_1.pt")
    torch.save(model.state_dict(), out / "bare.pt")
    torch.save({k: v.half() for k, v in state.items()} | dict(input_resolution=torch.tensor(16), context_length=torch.tensor(6), vocab_size=torch.tensor(24)), out / "openai.pt")
    torch.save({k: v.double() for k, v in state.items()}, out / "fp64.pt")
    torch.save(state, out / "old.pt", _use_new_zipfile_serialization=False)
    # Views: one storage for all, transposed matrices, a storage larger than its view.
    flat = torch.cat([torch.zeros(7), *(v.reshape(-1) for v in state.values())]); at, views = 7, {}
    for k, v in state.items():
        views[k] = flat[at:at + v.numel()].view(v.shape); at += v.numel()
        if v.ndim == 2: views[k] = v.t().contiguous().t()
    torch.save(views, out / "views.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model.eval(), (images, texts), strict=False, check_trace=False), out / "script.pt")
    # What OpenCLIP makes of the file for a model of other sizes, and of another form.
    for name, config in dict(larger=LARGER, smaller=SMALLER, custom=CUSTOM).items():
        other = model_of(config, out, name); load_checkpoint(other, str(out / "epoch_1.pt"))
        save_file({k: v.contiguous() for k, v in other.state_dict().items()}, out / f"{name}.safetensors")

    class Runs:
        def __reduce__(self): return os.system, ("touch it-ran",)

    torch.save(dict(state_dict=state, args=Runs()), out / "runs.pt")
    torch.save(dict(state_dict=state, args=__import__("argparse").Namespace(lr=1)), out / "namespace.pt")
    (out / "versions.json").write_text(json.dumps(dict(command="python tests/peers/weights.py make tests/goldens/weights", open_clip=open_clip.__version__, torch=torch.__version__)) + "\n")
    print({p.name: p.stat().st_size for p in sorted(out.iterdir())})


def check(folders):
    for folder in folders:
        config = json.loads((pathlib.Path(folder) / "open_clip_config.json").read_text())["model_cfg"]
        model = open_clip.create_model(f"local-dir:{folder}"); model.eval()
        keys = load_checkpoint(model, str(pathlib.Path(folder) / "open_clip_model.safetensors"), strict=False)
        file = load_file(pathlib.Path(folder) / "open_clip_model.safetensors"); own = model.state_dict()
        torch.manual_seed(0)
        size, text = config["vision_cfg"].get("image_size", 224), config["text_cfg"]
        images = torch.randn(2, 3, size, size); texts = torch.randint(1, text.get("vocab_size", 49408), (2, text.get("context_length", 77)))
        with torch.no_grad(): f, g = model.encode_image(images, normalize=True), model.encode_text(texts, normalize=True)
        save_file(dict(images=images, texts=texts, image_features=f, text_features=g), pathlib.Path(folder) / "check.safetensors")
        print(json.dumps(dict(folder=folder, missing=keys.missing_keys, unexpected=keys.unexpected_keys, names=sorted(file) == sorted(own), bits=all(torch.equal(file[k], own[k]) for k in file if k in own))))


if __name__ == "__main__":
    assert open_clip.__version__ == "3.3.0", open_clip.__version__
    make(sys.argv[2]) if sys.argv[1] == "make" else check(sys.argv[2:])
