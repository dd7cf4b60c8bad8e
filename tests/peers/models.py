"""What every configuration that open_clip ships holds: parameters, buffers and a digest of all names and shapes.

Nothing is allocated (torch's meta device). `models.py OUT.json` writes the golden of worker's model table."""
import hashlib, json, pathlib, sys
import torch, open_clip
from open_clip.model import CLIP, CustomTextCLIP


def reason(cfg):
    """Why a configuration is not native; None where it is."""
    if "multimodal_cfg" in cfg:
        return "CoCa's captioning decoder"
    parts = []
    if cfg["vision_cfg"].get("timm_model_name"):
        parts.append("a timm image tower")
    if cfg["text_cfg"].get("hf_model_name"):
        parts.append("a Hugging Face text tower")
    return " and ".join(parts) or None


def layout(cfg):
    cfg = dict(cfg)
    build = CustomTextCLIP if cfg.pop("custom_text", False) else CLIP
    with torch.device("meta"):
        model = build(**cfg)
    lines = sorted(f"{name}:{list(t.shape)}" for name, t in model.state_dict().items())
    return dict(
        parameters=sum(p.numel() for p in model.parameters()),
        image_parameters=sum(p.numel() for p in model.visual.parameters()),
        buffers=sum(t.numel() for t in model.state_dict().values()) - sum(p.numel() for p in model.parameters()),
        tensors=len(lines),
        layout=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    )


out = {}
for name in sorted(open_clip.list_models()):
    cfg = open_clip.get_model_config(name)
    why = reason(cfg)
    out[name] = {"refused": why} if why else {"model_cfg": cfg} | layout(cfg)
golden = dict(open_clip=open_clip.__version__, torch=torch.__version__, models=out)
text = json.dumps(golden, indent=None, separators=(",", ": "))
pathlib.Path(sys.argv[1]).write_text(text.replace('},"', '},\n"') + "\n")
print(json.dumps(dict(models=len(out), native=sum("refused" not in m for m in out.values()))))
