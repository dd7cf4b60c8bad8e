"""Shards of JPEG photographs with captions, cut at random out of the pictures in some folders.

    python photos.py OUT small|large PICTURES_FOLDER...

`small` makes 2,000 pictures whose short side is 256 to 512 px in 4 shards, `large` 600 of 640 to 1024 px in 2. Eight of ten are
saved at quality 95 with 4:2:0 chroma, one at 85, the others with 4:4:4, progressive or gray: what crawled sets look like.
Photographs that may be used: those in the packages scikit-image and scikit-learn, Debian's mate-backgrounds.
"""
import io, json, os, random, sys, tarfile
from PIL import Image

Image.MAX_IMAGE_PIXELS = None
SETS = dict(small=(2000, 4, 256, 512), large=(600, 2, 640, 1024))
WORDS = "a photo of the red blue small large old wooden dog cat house tree street mountain sea people walking under sky at night with light near water".split()


def sources(folders, least):
    for folder in folders:
        for at, _, names in sorted(os.walk(folder)):
            for name in sorted(names):
                if name.lower().endswith((".jpg", ".jpeg", ".png")):
                    im = Image.open(os.path.join(at, name))
                    # Drawings and screenshots compress far better than photographs.
                    if im.mode == "RGB" and min(im.size) >= least: yield im.convert("RGB")


def picture(rng, im, low, high):
    short = rng.randrange(low, high + 1)
    ratio = rng.choice([1, 4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3])
    width, height = (round(short * ratio), short) if ratio >= 1 else (short, round(short / ratio))
    # A piece of at least half the picture's short side, so that detail is as a camera's scaled down.
    most = min(im.width / width, im.height / height)
    scale = rng.uniform(min(1.0, most), most)
    w, h = max(1, int(width * scale)), max(1, int(height * scale))
    left, top = rng.randrange(im.width - w + 1), rng.randrange(im.height - h + 1)
    return im.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + w, top + h))


def main():
    out, kind, folders = sys.argv[1], sys.argv[2], sys.argv[3:]
    count, shards, low, high = SETS[kind]
    rng, images = random.Random(1), list(sources(folders, 400 if kind == "small" else 900))
    assert len(images) >= 4, f"only {len(images)} photographs in {folders}"
    os.makedirs(out, exist_ok=True)
    total = pixels = 0
    for shard in range(shards):
        with tarfile.open(os.path.join(out, f"{shard:05d}.tar"), "w") as tar:
            for i in range(count // shards):
                im, data = picture(rng, rng.choice(images), low, high), io.BytesIO()
                how = rng.randrange(20)
                options = dict(quality=85 if how in (16, 17) else 95, subsampling=0 if how == 18 else 2, progressive=how == 19)
                (im.convert("L") if how == 0 and i % 5 == 0 else im).save(data, "JPEG", **options)
                caption = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(6, 26)))
                meta = json.dumps(dict(key=f"{i:06d}", width=im.width, height=im.height, caption=caption))
                for suffix, content in (("jpg", data.getvalue()), ("txt", caption.encode()), ("json", meta.encode())):
                    member = tarfile.TarInfo(f"{shard:05d}{i:04d}.{suffix}"); member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                total += len(data.getvalue()); pixels += im.width * im.height
    print(json.dumps(dict(out=out, pictures=count, photographs=len(images), bytes_each=total // count, pixels_each=pixels // count)))


main()
