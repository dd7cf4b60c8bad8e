"""OpenCLIP's zero-shot classification, for comparison with `argosy eval zero-shot`.

zero_shot.py run HUB CLASSES TEMPLATES SHARD.tar...   one JSON object a sample: {"key", "class", "top5", "logits"}
zero_shot.py make OUT CLASSES TEMPLATES SHARD.tar...  a small model with random weights in OUT/hub and its answers in
    OUT/predictions.jsonl: the golden of worker/tests/goldens/zero-shot. The token embedding keeps only the rows that the
    prompts use, so that the file packs well, and the weights are spread so that the answers differ.
"""
import gzip
import io
import json
import os
import sys
import tarfile

import open_clip
import torch
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from PIL import Image

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
}


def lines(path):
    with open(path) as f:
        return [line.rstrip() for line in f.read().rstrip().split("\n")]


def samples(shards):
    for shard in shards:
        groups = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, suffix = member.name.split(".", 1)
                groups.setdefault(key, {})[suffix] = tar.extractfile(member).read()
        for key, parts in groups.items():
            picture = next(parts[s] for s in ("jpg", "png", "jpeg", "webp") if s in parts)
            yield key, int(parts["cls"]), Image.open(io.BytesIO(picture))


@torch.no_grad()
def answers(hub, classes, templates, shards):
    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:" + hub)
    model.eval()
    tokenizer = open_clip.get_tokenizer("local-dir:" + hub)
    weights = build_zero_shot_classifier(model, tokenizer, lines(classes), lines(templates), 10, "cpu")
    batch = []
    for sample in list(samples(shards)) + [None]:
        if sample:
            batch.append(sample)
        if batch and (sample is None or len(batch) == 64):
            images = torch.stack([preprocess(picture) for _, _, picture in batch])
            features = model.encode_image(images, normalize=True)
            logits = 100.0 * features @ weights
            top = logits.topk(5)
            for (key, label, _), values, ids in zip(batch, top.values.tolist(), top.indices.tolist()):
                yield {"key": key, "class": label, "top5": ids, "logits": [round(v, 5) for v in values]}
            batch = []


def make(out, classes, templates, shards):
    from safetensors.torch import save

    hub = os.path.join(out, "hub")
    os.makedirs(hub, exist_ok=True)
    torch.manual_seed(11)
    model = open_clip.model.CLIP(**CONFIG)
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    used = set()
    for name in lines(classes):
        for template in lines(templates):
            used.update(tokenizer([template.format(name)])[0].tolist())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for name, value in state.items():
        if value.ndim >= 2:
            value.mul_(3.0)
    unused = torch.ones(49408, dtype=torch.bool)
    unused[list(used)] = False
    state["token_embedding.weight"][unused] = 0.0
    # 8 bits of mantissa less: the file is a third smaller, and the numbers are as good.
    state = {k: v.to(torch.bfloat16).float().contiguous() for k, v in state.items()}
    with open(os.path.join(hub, "open_clip_config.json"), "w") as f:
        json.dump({"model_cfg": CONFIG, "preprocess_cfg": {}}, f, indent=1)
    weights = os.path.join(hub, "open_clip_model.safetensors")
    with open(weights, "wb") as f:
        f.write(save(state))
    with open(os.path.join(out, "predictions.jsonl"), "w") as f:
        for answer in answers(hub, classes, templates, shards):
            f.write(json.dumps(answer, separators=(",", ":")) + "\n")
    with open(weights, "rb") as plain, gzip.GzipFile(weights + ".gz", "wb", 9, mtime=0) as packed:
        packed.write(plain.read())
    os.remove(weights)
    with open(os.path.join(out, "versions.json"), "w") as f:
        import PIL

        json.dump(
            {
                "command": "tests/peers/zero_shot.py make worker/tests/goldens/zero-shot ops/demo/classes.txt ops/demo/templates.txt twemoji/test-00000.tar",
                "open_clip_torch": open_clip.__version__,
                "torch": torch.__version__,
                "pillow": PIL.__version__,
            },
            f,
            indent=1,
        )


if __name__ == "__main__":
    command, first, classes, templates, *shards = sys.argv[1:]
    if command == "make":
        make(first, classes, templates, shards)
    else:
        for answer in answers(first, classes, templates, shards):
            print(json.dumps(answer))
