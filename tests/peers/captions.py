"""Seeded captions with the ids that open_clip's tokenizer gives them: one JSON list [text, [ids...]] a line, without padding.

    python captions.py --seed 7 --captions 1600 --fuzz-bytes 60000 > ../../shard-loader/tests/goldens/captions.jsonl

Captions are what data sets hold (words, names, entities, emoji, many scripts, mojibake of all of them); fuzz is anything that
is valid Unicode: mutated captions, random code points, bytes taken for text. Text that holds characters which this Python does
not know (unicodedata, Unicode 14 for Python 3.11), or comes to hold some by repair, is left out: what OpenCLIP makes of them
depends on the versions of Python and its regex module.
"""
import argparse, html.entities, json, random, sys, unicodedata
import ftfy, open_clip
from open_clip.tokenizer import get_clean_fn

clean = get_clean_fn("lower")
WORDS = ("a the photo picture of on with in at man woman dog cat house tree red blue black white large small old new best free stock image vector "
         "illustration design wedding dress shoes kitchen modern living room beach sunset mountain car for sale women's men's kids' vintage poster "
         "print canvas wall art by John Smith New York 2019 1080p 3D HD iPhone XL T-Shirt Size-10 $19.99 50% #1 & + = @home e-mail www.example.com "
         "https://example.com/a/b.jpg?x=1&y=2 don't it's we've I'm you'll they'd rock'n'roll antidisestablishmentarianism IMG_1234.JPG (2) [HD] \"quoted\" 'single' -- ... !!! ???").split()
SCRIPTS = {
    "latin": "naïve café déjà vu München Straße façade Ærøskøbing señor mañana São Paulo Łódź Kraków Żółw Čeština Dvořák İstanbul ışık ğ Åse Øl þorn ŒUVRE cœur l’été d’Artagnan Ñandú Ünlü Ősz fűző ŉ ǅ ĳs".split(),
    "cyrillic": "Привет мир фото красивый дом Москва улица Ёлка ёж Україна їжак ґанок Ђорђе Љубав Џеп №5".split(),
    "greek": "Ελληνικά ΣΊΣΥΦΟΣ σίσυφος ΟΔΟΣ άλφα ΐ ΰ Ώρα φωτογραφία".split(),
    "cjk": "日本語 テキスト カタカナ ひらがな ｶﾀｶﾅ 中文字符 測試 照片 漂亮的 한국어 텍스트 사진 ＦＵＬＬ １２３ 「引用」 東京タワー、 你好！".split(),
    "others": "العربية صورة עברית תמונה हिन्दी चित्र ไทย ภาพ தமிழ் বাংলা ქართული հայերեն አማርኛ မြန်မာ ភាសា Tiếng Việt ảnh đẹp".split(),
    "emoji": "😀 👍🏽 👩‍👩‍👧 🇩🇪 ❤️ ☕ ✔ ★ ™ © ® 🏴󠁧󠁢󠁥󠁮󠁧󠁿 1️⃣ 🤷‍♀️ 🎉🎉 😂😂😂".split(),
    "signs": "½ ¼ ³ ² µm 10° 5′ € £ ¥ ¢ § ¶ † ‡ • … – — − × ÷ ± ≈ ≠ ∞ √2 ∑ Ω Å K № ℃ ™ ¿qué? ¡sí! «oui» „ja“ ‚x‘ “curly” ‘single’ it’s ′ ″ ﬁne ﬂow oﬃce ﬆ ſong ﬀ".split(),
    "odd": ["\u200b", "\u200d", "\u00ad", "\u00a0", "\ufeff", "\u2028", "\u0085", "\u0000", "\u0007", "\u001b[31m", "\u001b[0m", "\u001b[1;٣m", "\ufffd", "\u001a", "'ſ", "ſ's", "'s", "''", "<start_of_text>", "<end_of_text>", "<ſtart_of_text>",
            "<|endoftext|>", "<b>", "</p>", "a\u0301", "e\u0308", "\u0345", "x\u0345y", "\u1e9e", "\r\n", "\r", "\t", "\u3000", "\x1c", "\x1f", "\x0b", "\x85", "\x92s", "\x93q\x94", "\uf8ff", "Ⅷ", "①", "٣", "१", "𝒥", "𝐀", "ǆ", "ŉ"],
}
ENTITIES = sorted(html.entities.html5)
ENCODINGS = ["latin-1", "sloppy-windows-1252", "sloppy-windows-1251", "sloppy-windows-1250", "sloppy-windows-1253", "sloppy-windows-1254", "sloppy-windows-1257", "iso-8859-2", "macroman", "cp437"]


def entity(rng):
    kind = rng.randrange(8)
    name = rng.choice(ENTITIES)
    if kind < 3: return "&" + name
    if kind == 3: return "&" + name.upper()
    if kind == 4: return f"&#{rng.choice([34, 38, 39, 59, 60, 62, 150, 160, 169, 233, 0, 1, 11, 12, 13, 55296, 65534, 128512, 1114112, rng.randrange(70000)])}" + rng.choice([";", "", " "])
    if kind == 5: return f"&#{rng.choice('xX')}{rng.choice([0x26, 0x27, 0x2019, 0x80, 0x9d, 0xe9, 0x1f600, rng.randrange(0x11000)]):x};"
    if kind == 6: return rng.choice(["&amp;", "&amp;amp;", "&quot;", "&#39;", "&nbsp;", "&lt;", "&gt;", "&rsquo;", "&eacute;", "&amp", "&AMP;", "&lt;b&gt;"])
    return "&" + name[: rng.randrange(len(name) + 1)] + rng.choice(["", ";", "x;"])


def garble(text, rng):
    """UTF-8 read by the wrong encoding, once or twice, sometimes with what programs do to such text on its way."""
    for _ in range(rng.choice([1, 1, 1, 2])):
        encoding = rng.choice(ENCODINGS[:2] * 4 + ENCODINGS)
        text = text.encode("utf-8", "replace").decode(encoding, "replace")
    kind = rng.randrange(8)
    if kind == 0: text = text.replace("\xa0", " ")
    if kind == 1: text = "".join("\ufffd" if 0x80 <= ord(c) < 0xA0 else c for c in text)
    if kind == 2: text = text.replace("\ufffd", "?")
    return text


def caption(rng):
    out = []
    for _ in range(rng.choice([1, 3, 6, 6, 10, 15, 25, 60])):
        kind = rng.randrange(100)
        if kind < 70: out.append(rng.choice(WORDS))
        elif kind < 80: out.append(rng.choice(SCRIPTS["latin"]))
        elif kind < 93: out.append(rng.choice(SCRIPTS[rng.choice(["cyrillic", "greek", "cjk", "others", "emoji", "signs"])]))
        elif kind < 95: out.append(rng.choice(SCRIPTS["odd"]))
        else: out.append(entity(rng))
    kind = rng.randrange(20)
    if kind == 0: out = [w.upper() for w in out]
    if kind == 1: out = [w.title() for w in out]
    if kind == 2: out = [rng.choice(SCRIPTS[rng.choice(sorted(SCRIPTS))]) for _ in out]
    text = rng.choice([" "] * 12 + ["", "  ", ", ", "\n"]).join(out)
    if rng.randrange(6) == 0: text = unicodedata.normalize(rng.choice(["NFD", "NFKC", "NFKD"]), text)
    if rng.randrange(4) == 0: text = garble(text, rng)
    elif rng.randrange(6) == 0:
        middle = len(text) // 2
        text = text[:middle] + garble(text[middle:], rng)
    return text


def fuzz(rng):
    kind = rng.randrange(6)
    n = rng.choice([1, 2, 3, 5, 10, 30, 100, 200])
    if kind == 0: return "".join(chr(rng.randrange(0x20, 0x250)) for _ in range(n))
    if kind == 1: return "".join(chr(rng.choice([rng.randrange(0x80), rng.randrange(0x600), rng.randrange(0x3000), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(n))
    if kind == 2: return bytes(rng.randrange(256) for _ in range(n)).decode(rng.choice(ENCODINGS + ["utf-8"]), "ignore")
    if kind == 3: return garble("".join(chr(rng.choice([rng.randrange(0x100), rng.randrange(0x3000), rng.randrange(0x1F000, 0x20000)])) for _ in range(n)), rng)
    text = list(caption(rng))
    for _ in range(rng.randrange(1, 12)):
        at = rng.randrange(len(text) + 1)
        if rng.randrange(3): text.insert(at, rng.choice([chr(rng.randrange(0x100)), chr(rng.randrange(0x2000, 0x2200)), "&", "'", "\u00c3", "\u00e2\u20ac", "\u00c2 ", "&#", ";", rng.choice(SCRIPTS["odd"])]))
        elif text: del text[min(at, len(text) - 1)]
    return "".join(text)


def known(text):
    return all(unicodedata.category(c) not in ("Cn", "Cs") for c in text + clean(text))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--seed", type=int, default=1); p.add_argument("--captions", type=int, default=100_000); p.add_argument("--fuzz-bytes", type=int, default=10_000_000)
    p.add_argument("--every-character", action="store_true", help="also every character that this Python knows, between letters and after an apostrophe, and every entity")
    a = p.parse_args()
    assert open_clip.__version__ == "3.3.0", open_clip.__version__
    rng, tokenizer = random.Random(a.seed), open_clip.get_tokenizer("ViT-B-32")

    def write(text):
        ids = tokenizer([text])[0].tolist()
        while ids[-1] == 0: ids.pop()
        print(json.dumps([text, ids], ensure_ascii=True, separators=(",", ":")))

    made = 0
    while made < a.captions:
        text = caption(rng)
        if known(text): write(text); made += 1
    made = 0
    while made < a.fuzz_bytes:
        text = fuzz(rng)
        if known(text): write(text); made += len(text.encode())
    for code in range(0x110000) if a.every_character else ():
        if known(chr(code)): write(f"x{chr(code)}y '{chr(code)} {chr(code)}s")
    for name in ENTITIES if a.every_character else ():
        for text in (name, name + "x", name.rstrip(";"), name.upper(), name.capitalize()): write(f"a&{text} b")
    print("seed", a.seed, "captions", a.captions, "fuzz bytes", a.fuzz_bytes, "ftfy", ftfy.__version__, "Unicode", unicodedata.unidata_version, file=sys.stderr)


main()
