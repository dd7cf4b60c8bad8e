"""Weights and pictures for both sides of a race, and OpenCLIP's loss and gradient norm on them before the first update."""
import argparse, json, pathlib
import torch, open_clip
from open_clip.loss import ClipLoss
from safetensors.torch import save_file

p = argparse.ArgumentParser()
p.add_argument("--model", default="ViT-B-32"); p.add_argument("--config"); p.add_argument("--batch", type=int, default=16)
p.add_argument("--precision", choices=["fp32", "bf16"], default="fp32"); p.add_argument("--captions", required=True)
p.add_argument("--threads", type=int, default=2); p.add_argument("--out", required=True, help="folder for model.safetensors and pictures.u8 (rows of RGB bytes)")
a = p.parse_args()
out = pathlib.Path(a.out); out.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(a.threads)
if a.config: open_clip.add_model_config(a.config)
torch.manual_seed(0)
model = open_clip.create_model(a.model); model.train()
save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / "model.safetensors")
size = model.visual.image_size; size = size[0] if isinstance(size, tuple) else size
pictures = torch.randint(0, 256, (a.batch, size, size, 3), dtype=torch.uint8)
pictures.numpy().tofile(out / "pictures.u8")
mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
images = (pictures.permute(0, 3, 1, 2).float() / 255 - mean) / std
lines = [line.rstrip("\n") for line in open(a.captions)]
texts = open_clip.get_tokenizer(a.model)([lines[i % len(lines)] for i in range(a.batch)])
with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.precision == "bf16"):
    found = model(images, texts)
    features = (found["image_features"], found["text_features"], found["logit_scale"]) if isinstance(found, dict) else found[:3]
    loss = ClipLoss()(*features)
loss.backward()
norm = sum(q.grad.double().pow(2).sum() for q in model.parameters() if q.grad is not None).sqrt()
print(json.dumps(dict(peer="open_clip " + open_clip.__version__, model=a.model, batch=a.batch, precision=a.precision, loss=float(loss.detach()), grad_norm=float(norm))))
