"""Moments of the initial values that open_clip draws, tensor by tensor, over many seeds.

`init.py OUT.json [SEEDS]` writes the golden that worker's own draws are held against."""
import json, pathlib, sys
import torch, open_clip
from open_clip.model import CLIP, CustomTextCLIP

TEXT = dict(context_length=16, vocab_size=64, width=32, heads=2, layers=2)
CONFIGS = {
    "vit": dict(embed_dim=24, vision_cfg=dict(image_size=32, layers=3, width=48, head_width=16, patch_size=8), text_cfg=TEXT),
    "vit-scaled": dict(
        embed_dim=24, custom_text=True, init_logit_bias=-10.0,
        vision_cfg=dict(image_size=32, layers=2, width=48, head_width=16, patch_size=8, ls_init_value=0.1, mlp_ratio=2.5, pool_type="avg"),
        text_cfg=TEXT | dict(proj_bias=True, ls_init_value=0.2, mlp_ratio=3.0, layers=3)),
    "resnet": dict(embed_dim=24, vision_cfg=dict(image_size=64, layers=[1, 2, 1, 1], width=8, head_width=32, patch_size=None), text_cfg=TEXT),
}

seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 64
out = {}
for name, config in CONFIGS.items():
    drawn = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        cfg = json.loads(json.dumps(config))
        model = (CustomTextCLIP if cfg.pop("custom_text", False) else CLIP)(**cfg)
        for key, value in model.state_dict().items():
            drawn.setdefault(key, []).append(value.detach().double().flatten())
    tensors = {}
    for key, values in sorted(drawn.items()):
        x = torch.cat(values)
        mean, std = x.mean(), x.std(unbiased=False)
        kurtosis = ((x - mean) ** 4).mean() / std**4 if std > 0 else torch.tensor(0.0)
        tensors[key] = [x.numel()] + [float(f"{float(v):.6g}") for v in (mean, std, kurtosis, x.abs().max())]
    out[name] = dict(model_cfg=config, tensors=tensors)
golden = dict(open_clip=open_clip.__version__, torch=torch.__version__, seeds=seeds, columns=["elements", "mean", "std", "kurtosis", "largest"], models=out)
text = json.dumps(golden, separators=(",", ": "))
pathlib.Path(sys.argv[1]).write_text(text.replace('],"', '],\n"') + "\n")
print(json.dumps({name: len(model["tensors"]) for name, model in out.items()}))
