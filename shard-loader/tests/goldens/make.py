"""Makes the goldens of this folder with Pillow 13.0.0, torchvision 0.26 and open_clip 3.3.0 (tests/peers/setup.sh installs them).

Run in this folder: `python make.py`. Small pictures are written to pictures/, what the peers make of them to
pictures.json, resize.json, colors.json (FNV-1a digests of RGB bytes), normalized.json (digests of float32) and tokens.json (ids).
"""
import io, json, os, random, struct, zlib
import numpy as np
from PIL import Image, ImageDraw
import open_clip, PIL, torchvision
from open_clip.constants import IMAGENET_MEAN, IMAGENET_STD, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import CenterCropOrPad, ResizeKeepRatio
from torchvision.transforms import InterpolationMode, functional as F, Compose, Normalize, ToTensor
from torchvision.transforms.functional import center_crop, resize


def fnv(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def noise(width, height, seed=1):
    """The picture that the tests make by the same formula."""
    x, out = seed, bytearray()
    for _ in range(width * height * 3):
        x = (x * 1664525 + 1013904223) & 0xFFFFFFFF
        out.append(x >> 24)
    return Image.frombytes("RGB", (width, height), bytes(out))


def photo(width, height, seed=0):
    """Gradients, shapes and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 / max(1, width - 1), y * 255 / max(1, height - 1), (x + y) * 4 % 256], -1)
    im = Image.fromarray(np.clip(base + rng.normal(0, 9, base.shape), 0, 255).astype(np.uint8), "RGB")
    draw = ImageDraw.Draw(im)
    for _ in range(4):
        a, b = rng.integers(0, width, 2), rng.integers(0, height, 2)
        draw.ellipse([min(a), min(b), max(a) + 1, max(b) + 1], fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return im


def png_by_hand(path, width, height, depth, color, rows, interlace=False, extra=b""):
    """What Pillow cannot write: 16 bit, low depths, Adam7."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    raw = b"".join(b"\0" + r for r in rows)
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlace))
    open(path, "wb").write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))


def write_jpegs(d):
    im = photo(131, 97)
    im.save(d + "420.jpg", quality=85)
    im.save(d + "422.jpg", quality=80, subsampling=1)
    photo(60, 171, 1).save(d + "444.jpg", quality=92, subsampling=0)
    im.save(d + "progressive.jpg", quality=75, progressive=True)
    im.convert("L").save(d + "gray.jpg", quality=80)
    im.convert("CMYK").save(d + "cmyk.jpg", quality=85)
    photo(1, 1).save(d + "one.jpg")
    photo(17, 3).save(d + "thin.jpg", quality=90)
    im.save(d + "restarts.jpg", quality=70, restart_marker_blocks=2)
    im.save(d + "icc_junk.jpg", quality=70, icc_profile=b"no profile at all" * 50)
    ycck = open(d + "cmyk.jpg", "rb").read(); adobe = ycck.index(b"Adobe")
    open(d + "ycck.jpg", "wb").write(ycck[:adobe + 11] + b"\2" + ycck[adobe + 12:])
    im.convert("CMYK").save(d + "cmyk_444.jpg", quality=90, subsampling=0)
    im.save(d + "progressive_444.jpg", quality=90, subsampling=0, progressive=True); im.convert("L").save(d + "progressive_gray.jpg", progressive=True)
    exif = Image.Exif(); exif[0x0112] = 6
    photo(40, 30, 2).save(d + "turned.jpg", exif=exif)
    data = open(d + "420.jpg", "rb").read()
    open(d + "garbage_after.jpg", "wb").write(data + b"garbage" * 9)
    middle = bytearray(data); start = len(data) // 2
    middle[start:start + 6] = bytes([0x12, 0x9A, 0x34, 0x55, 0xC1, 0x07])
    open(d + "bits_flipped.jpg", "wb").write(bytes(middle))
    open(d + "cut.jpg", "wb").write(data[: len(data) * 2 // 3])
    open(d + "header_only.jpg", "wb").write(data[:300])


def write_pngs(d):
    im = photo(41, 29, 3); rng = random.Random(5)
    alpha = Image.frombytes("L", im.size, bytes(rng.randrange(256) for _ in range(41 * 29)))
    im.save(d + "rgb.png"); im.convert("L").save(d + "l.png"); im.convert("1").save(d + "bilevel.png")
    rgba = im.copy(); rgba.putalpha(alpha); rgba.save(d + "rgba.png")
    la = im.convert("L"); la.putalpha(alpha); la.save(d + "la.png")
    p = im.quantize(64); p.save(d + "palette.png"); p.save(d + "palette_clear.png", transparency=3)
    im.quantize(4).save(d + "palette4.png", bits=2)
    im.save(d + "rgb_clear.png", transparency=(12, 13, 14))
    w, h = 19, 13
    def rows(n): return [bytes(rng.randrange(256) for _ in range(n)) for _ in range(h)]
    png_by_hand(d + "gray2.png", w, h, 2, 0, rows(5)); png_by_hand(d + "gray4.png", w, h, 4, 0, rows(10))
    png_by_hand(d + "gray16.png", w, h, 16, 0, rows(2 * w)); png_by_hand(d + "rgb16.png", w, h, 16, 2, rows(6 * w))
    png_by_hand(d + "rgba16.png", w, h, 16, 6, rows(8 * w)); png_by_hand(d + "la16.png", w, h, 16, 4, rows(4 * w))
    clear = struct.pack(">I", 2) + b"tRNS\0\1" + struct.pack(">I", zlib.crc32(b"tRNS\0\1"))
    png_by_hand(d + "gray_clear.png", w, h, 8, 0, rows(w), extra=clear)
    # Adam7: seven small pictures one after the other, here of 8-bit gray.
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    values = rows(w)
    parts = [bytes(values[y][x0::dx]) for x0, y0, dx, dy in passes for y in range(y0, h, dy) if w > x0]
    png_by_hand(d + "interlaced.png", w, h, 8, 0, parts, interlace=True)
    data = open(d + "rgb.png", "rb").read()
    open(d + "cut.png", "wb").write(data[: len(data) // 2])
    def broken(name, at, mask=0x55, source=data):
        bad = bytearray(source); bad[at] ^= mask; open(d + name, "wb").write(bytes(bad))
    idat = data.index(b"IDAT"); length = struct.unpack(">I", data[idat - 4:idat])[0]
    broken("sum_of_data.png", idat + 4 + length)      # the chunk's own checksum
    broken("sum_inside.png", idat + 3 + length)       # the last byte of the packed data's own
    broken("sum_of_header.png", 30)
    pal = open(d + "palette.png", "rb").read(); plte = pal.index(b"PLTE"); size = struct.unpack(">I", pal[plte - 4:plte])[0]
    broken("sum_of_palette.png", plte + 4 + size, source=pal)
    def chunk(kind, body): return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    ihdr_end = 33
    def with_chunk(name, extra): open(d + name, "wb").write(data[:ihdr_end] + extra + data[ihdr_end:])
    with_chunk("icc_junk.png", chunk(b"iCCP", b"x\0\0" + b"junk" * 20))
    with_chunk("icc_bomb.png", chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(3_000_000), 9)))
    with_chunk("text.png", chunk(b"tEXt", b"Comment\0a caption"))
    with_chunk("unknown.png", chunk(b"abCd", b"private"))
    # Far more pixels are packed than the header says.
    raw = b"".join(b"\0" + bytes(3 * 41) for _ in range(29)) + bytes(4_000_000)
    head = struct.pack(">IIBBBBB", 41, 29, 8, 2, 0, 0, 0)
    open(d + "zlib_bomb.png", "wb").write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))
    empty = struct.pack(">IIBBBBB", 0, 29, 8, 2, 0, 0, 0)
    open(d + "no_width.png", "wb").write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", empty) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def write_webps(d):
    im = photo(75, 51, 4); rng = random.Random(6)
    alpha = Image.frombytes("L", im.size, bytes(rng.choice([0, 0, 128, 255]) for _ in range(75 * 51)))
    rgba = im.copy(); rgba.putalpha(alpha)
    im.save(d + "lossy.webp", quality=80); im.save(d + "lossless.webp", lossless=True)
    rgba.save(d + "lossy_alpha.webp", quality=70); rgba.save(d + "lossless_alpha.webp", lossless=True, exact=True)
    im.resize((30, 20)).save(d + "moving.webp", save_all=True, append_images=[photo(30, 20, 8)], quality=60)
    data = open(d + "lossy.webp", "rb").read()
    open(d + "cut.webp", "wb").write(data[: len(data) // 2])


def pictures():
    d = "pictures/"; os.makedirs(d, exist_ok=True)
    for old in os.listdir(d): os.remove(d + old)
    write_jpegs(d); write_pngs(d); write_webps(d)
    open(d + "text.jpg", "wb").write(b"this is not a picture"); open(d + "empty.jpg", "wb").write(b"")
    out = []
    for name in sorted(os.listdir(d)):
        try:
            im = Image.open(d + name).convert("RGB")
        except Exception as e:
            out.append(dict(file=name, error=type(e).__name__)); continue
        case = dict(file=name, width=im.width, height=im.height, decoded=fnv(im.tobytes()), evaluated={}, squashed={}, longest={}, bilinear={}, bilinear_squashed={})
        for size in (16, 48, 224) if name.startswith("4") else (24,):
            case["evaluated"][size] = fnv(center_crop(resize(im, size, InterpolationMode.BICUBIC), [size, size]).tobytes())
            for fill in (0, 128):
                keep = Compose([ResizeKeepRatio(size, interpolation=InterpolationMode.BICUBIC, longest=1), CenterCropOrPad(size, fill=fill)])
                try: case["longest"][f"{size} {fill}"] = fnv(keep(im).tobytes())
                except ValueError: assert min(im.size) * size < max(im.size), (name, size)  # a side of no pixels
            case["squashed"][size] = fnv(resize(im, [size, size], InterpolationMode.BICUBIC).tobytes())
            case["bilinear"][size] = fnv(center_crop(resize(im, size, InterpolationMode.BILINEAR), [size, size]).tobytes())
            case["bilinear_squashed"][size] = fnv(resize(im, [size, size], InterpolationMode.BILINEAR).tobytes())
        out.append(case)
    json.dump(out, open("pictures.json", "w"), indent=0)


def resizes():
    out = []
    for w, h, box, to in [
        (64, 64, None, (32, 32)), (300, 200, None, (64, 64)), (200, 300, None, (64, 64)), (120, 333, None, (64, 48)),
        (333, 120, None, (48, 64)), (31, 17, None, (64, 64)), (64, 300, None, (64, 64)), (300, 64, None, (64, 64)),
        (90, 300, None, (100, 64)), (257, 255, (10, 3, 240, 199), (96, 96)), (257, 255, (0, 0, 130, 251), (96, 96)),
        (40, 41, (5, 6, 7, 8), (224, 224)), (1, 1, None, (16, 16)), (500, 2, None, (16, 16)), (2, 500, None, (16, 16)),
        (100, 164, None, (82, 128)), (100, 165, None, (82, 128)), (224, 225, None, (224, 224)),
    ]:
        im = noise(w, h)
        if box:
            l, t, cw, ch = box
            im = im.crop((l, t, l + cw, t + ch))
        out.append(dict(width=w, height=h, box=box, to=to, digest=fnv(im.resize(to, Image.Resampling.BICUBIC).tobytes()),
                        bilinear=fnv(im.resize(to, Image.Resampling.BILINEAR).tobytes())))
    json.dump(out, open("resize.json", "w"), indent=0)


def colors():
    im = noise(57, 43, 9); out = {}
    for f in (0.0, 0.35, 0.8, 1.0, 1.3, 2.5):
        out[f"brightness {f}"] = fnv(F.adjust_brightness(im, f).tobytes())
        out[f"contrast {f}"] = fnv(F.adjust_contrast(im, f).tobytes())
        out[f"saturation {f}"] = fnv(F.adjust_saturation(im, f).tobytes())
    for f in (-0.5, -0.33, -0.01, 0.0, 0.1, 0.21, 0.5):
        out[f"hue {f}"] = fnv(F.adjust_hue(im, f).tobytes())
    out["gray"] = fnv(F.to_grayscale(im, 3).tobytes())
    json.dump(out, open("colors.json", "w"), indent=0)


def normalized():
    """Every byte in every channel through ToTensor and Normalize, as the bits of float32."""
    im = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2), "RGB")
    out = []
    for mean, std in ((OPENAI_DATASET_MEAN, OPENAI_DATASET_STD), ((0.5,) * 3, (0.5,) * 3), (IMAGENET_MEAN, IMAGENET_STD)):
        tensor = Compose([ToTensor(), Normalize(mean=mean, std=std)])(im)
        out.append(dict(mean=mean, std=std, digest=fnv(tensor.numpy().astype("<f4").tobytes())))
    json.dump(out, open("normalized.json", "w"), indent=0)


def captions():
    tricky = [
        "a photo of a cat", "A PHOTO OF A CAT!!!", "  white   space \t and \u3000 wide  ", "don't can't we've they'll i'm he'd you're",
        "DON'T", "it’s a “curly” quote", "naïve café déjà vu", "cafe\u0301 with a combining accent", "schÃ¶n kaputt",
        "&amp;amp; twice", "&lt;b&gt;bold&lt;/b&gt;", "fish &amp; chips", "fish &amp chips", "&copy; 2020 &reg; &trade;", "&#39;quoted&#39; &#x27;hex&#x27;",
        "&#8217;s and &rsquo;s", "&nbsp;space&nbsp;", "&notit; &notin; &nope;", "AT&T and R&D", "&#150; &#0; &#xD800; &#1114112;", "<start_of_text> inside <end_of_text>",
        "<|startoftext|> other <|endoftext|>", "ﬁne ﬂower oﬃce", "ＦＵＬＬ　ＷＩＤＴＨ １２３", "ｶﾀｶﾅ", "日本語のテキスト", "中文字符测试", "한국어 텍스트",
        "Привет, мир", "Ελληνικά ΣΊΣΥΦΟΣ", "İstanbul ISPARTA ı", "العربية", "עברית", "हिन्दी", "ไทย", "emoji 😀👍🏽👩‍👩‍👧 🇩🇪", "a\u0000nul b\u0007bell",
        "\ufeffbom first", "line\u2028sep\u0085nel", "soft\u00adhyphen zero\u200bwidth", "1234567890 3.14 1,000 10³ ½ Ⅷ", "under_score-dash–en—em…",
        "http://example.com/a?b=c&d=e&lang=en#frag", "#hashtag @user $5.00 100%", "C++ C# F# .NET", "!!!???...,,,", "a'b'c 'tis 'twas rock'n'roll",
        "x" * 400, "word " * 120, "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis", "\u1e9e ß ẞ", "ǅ ǆ Ǆ", "K Å Ω signs: \u212a \u212b \u2126",
        "\x1b[31mred\x1b[0m text", "tab\tnew\nline\r\nreturn", "ÐŸÑ€Ð¸Ð²ÐµÑ‚", "l’oiseau d’été", "â€œquotedâ€\x9d", "Ã¢â‚¬â„¢", "\u00a0\u00a0", "", " ", "'", "''", "'s", "ſ long s", "a\u0301\u0302\u0303",
    ]
    words = "a the photo of dog cat red blue sky tree house & ' 's -- ... é ü 9 42 1st XL &amp; &quot;ok&quot; “x” naïve München # % 日 本 😀 İ ﬁ it's don’t\u00a0".split(" ")
    rng = random.Random(7)
    while len(tricky) < 220:
        tricky.append(" ".join(rng.choice(words) for _ in range(rng.randrange(1, 16))) + rng.choice(["", ".", "!", " &lt;3", "’s"]))
    tok = open_clip.get_tokenizer("ViT-B-32"); out = []
    for text in tricky:
        ids = tok(text)[0].tolist()
        out.append(dict(text=text, ids=ids[: len(ids) - next((i for i, v in enumerate(reversed(ids)) if v), 0)]))
    json.dump(out, open("tokens.json", "w"), separators=(",", ":"))


assert PIL.__version__ == "13.0.0" and open_clip.__version__ == "3.3.0", (PIL.__version__, open_clip.__version__)
pictures(); resizes(); colors(); normalized(); captions()
print("Pillow", PIL.__version__, "torchvision", torchvision.__version__, "open_clip", open_clip.__version__)
