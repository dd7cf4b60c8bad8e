"""Which parameters OpenCLIP's own lock() freezes, for small models of every kind of tower.

    python locks.py > ../goldens/locks.json
"""
import json, pathlib, sys, tempfile
import torch, open_clip

VIT = dict(image_size=16, layers=3, width=16, head_width=8, patch_size=8)
TEXT = dict(context_length=6, vocab_size=24, width=16, heads=2, layers=3)
MODELS = {
    "plain": dict(embed_dim=8, vision_cfg=VIT, text_cfg=TEXT),
    "other": dict(embed_dim=8, custom_text=True, vision_cfg=VIT | dict(no_ln_pre=True, pool_type="avg", ls_init_value=0.1), text_cfg=TEXT | dict(proj_bias=True, layers=1), init_logit_bias=-10.0),
    "bare": dict(embed_dim=16, custom_text=True, vision_cfg=VIT | dict(layers=1), text_cfg=TEXT | dict(proj_type="none")),
    "resnet": dict(embed_dim=8, vision_cfg=dict(image_size=32, layers=[1, 1, 1, 1], width=4, head_width=8), text_cfg=TEXT),
}
cases = []
with tempfile.TemporaryDirectory() as folder:
    for name, config in MODELS.items():
        path = pathlib.Path(folder) / f"lock-{name}.json"; path.write_text(json.dumps(config)); open_clip.add_model_config(path)
        resnet = name == "resnet"
        for image in (None, 0) if resnet else (None, 0, 1, 2, 3, 9):
            for text in (None, 0, 1, 2, 4, 99) if image in (None, 0) else (None,):
                for freeze in ((False, True) if image is not None and resnet else (False,)):
                    model = open_clip.create_model(path.stem)
                    if image is not None: model.lock_image_tower(unlocked_groups=image, freeze_bn_stats=freeze)
                    if text is not None: model.lock_text_tower(unlocked_layers=text)
                    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
                    if freeze:  # its norms' weights are buffers then: not trained either
                        known = set(n for n, _ in open_clip.create_model(path.stem).named_parameters())
                        frozen += [n for n, _ in model.named_buffers() if n in known]
                    cases.append(dict(config=config, image=image, text=text, freeze_bn_stats=freeze, frozen=sorted(frozen)))
print(json.dumps(dict(command="python tests/peers/locks.py > tests/goldens/locks.json", open_clip=open_clip.__version__, torch=torch.__version__, cases=cases), separators=(",", ":")))
print(len(cases), "cases", file=sys.stderr)
