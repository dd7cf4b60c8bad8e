"""The table of published weights that `argosy models` shows: facts of the installed open_clip, and published accuracies.

    python pretrained.py make RESULTS.csv    prints worker/src/clip/pretrained.json; RESULTS.csv is docs/openclip_results.csv of the same release
    python pretrained.py check TABLE.json    compares a table with the installed open_clip, all but the accuracies
"""
import csv, json, sys
import open_clip
from open_clip.pretrained import _PRETRAINED

assert open_clip.__version__ == "3.3.0", open_clip.__version__
NORMS = {
    "openai": [[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]],
    "imagenet": [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]],
    "inception": [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]],
    "none": [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]],
}


def facts():
    for model, tags in _PRETRAINED.items():
        for tag, cfg in tags.items():
            norm = [n for n, (mean, std) in NORMS.items() if list(cfg["mean"]) == mean and list(cfg["std"]) == std]
            row = dict(model=model, tag=tag, quick_gelu=bool(cfg.get("quick_gelu", False)), norm=norm[0], interpolation=cfg["interpolation"], resize_mode=cfg["resize_mode"])
            if cfg.get("hf_hub"): row["hub"] = cfg["hf_hub"].rstrip("/")
            if cfg.get("url"): row["file"] = cfg["url"].rsplit("/", 1)[1]
            yield row


if sys.argv[1] == "make":
    published = {(r["name"], r["pretrained"]): r for r in csv.DictReader(open(sys.argv[2]))}
    rows = []
    for row in facts():
        found = published.get((row["model"], row["tag"]))
        if found: row |= dict(imagenet=float(found["ImageNet 1k"]), average_of_38=float(found["Average perf. on 38 datasets"]))
        rows.append(json.dumps(row))
    head = json.dumps(dict(open_clip=open_clip.__version__, norms=NORMS))[:-1]
    print(head + ', "tags": [\n' + ",\n".join(rows) + "\n]}")
else:
    table = json.load(open(sys.argv[2]))
    bare = [{k: v for k, v in row.items() if k not in ("imagenet", "average_of_38")} for row in table["tags"]]
    own = list(facts())
    for ours, theirs in zip(bare, own): assert ours == theirs, (ours, theirs)
    assert len(bare) == len(own) and table["open_clip"] == open_clip.__version__, (len(bare), len(own))
    print(f"{len(own)} tags equal")
