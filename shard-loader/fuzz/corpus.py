"""Writes the seeds of the corpus that are archives and captions: `python corpus.py` in this folder. Standard library only."""
import io, os, tarfile


def header(name, size, kind=b"0", magic=b"ustar\x0000", prefix=b"", link=b""):
    h = bytearray(512)
    h[:len(name)] = name
    h[100:108] = b"0000644\0"; h[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    h[156:157] = kind; h[157:157 + len(link)] = link; h[257:257 + len(magic)] = magic; h[345:345 + len(prefix)] = prefix
    h[148:156] = b" " * 8
    h[148:156] = b"%06o\0 " % sum(h)
    return bytes(h)


def member(name, data, kind=b"0", **more):
    return header(name, len(data), kind, **more) + data + b"\0" * (-len(data) % 512)


def pax(**records):
    out = b""
    for key, value in records.items():
        body = b" %s=%s\n" % (key.encode(), value.encode())
        length = len(body) + 1
        while length != len(str(length)) + len(body): length = len(str(length)) + len(body)
        out += str(length).encode() + body
    return member(b"pax", out, b"x")


END = b"\0" * 1024
GOOD = member(b"1.jpg", b"j" * 700) + member(b"1.txt", b"a cat")
TARS = {
    "plain": GOOD + END,
    "no-end": GOOD,
    "cut-data": (GOOD + member(b"2.jpg", b"x" * 3000))[:-1500],
    "cut-header": GOOD + header(b"2.jpg", 3)[:200],
    "climbing": member(b"../../etc/cron.d/x.jpg", b"j") + member(b"../../etc/cron.d/x.txt", b"t") + GOOD + END,
    "absolute": member(b"/etc/passwd.txt", b"root") + member(b"/etc/passwd.jpg", b"j") + GOOD + END,
    "links": header(b"a.jpg", 0, b"2", link=b"/etc/passwd") + header(b"b.jpg", 0, b"1", link=b"../x") + header(b"c.jpg", 900, b"2", link=b"y") + GOOD + END,
    "devices": header(b"null.jpg", 0, b"3") + header(b"disk.txt", 0, b"4") + header(b"pipe.jpg", 0, b"6") + header(b"dir/", 0, b"5") + GOOD + END,
    "pax-size": pax(size="5") + header(b"1.txt", 700) + b"hello" + b"\0" * 507 + member(b"1.jpg", b"j") + END,
    "pax-size-huge": pax(size="18446744073709551615") + header(b"1.txt", 5) + b"hello" + b"\0" * 507 + END,
    "pax-path": pax(path="deep/er/2.jpg") + member(b"x", b"j") + pax(path="deep/er/2.txt") + member(b"y", b"t") + END,
    "pax-nonsense": member(b"pax", b"9999 path=x\n0 \n-1 size=2\nabc", b"x") + GOOD + END,
    "sparse-gnu": header(b"s.jpg", 512, b"S") + b"s" * 512 + GOOD + END,
    "sparse-pax": pax(**{"GNU.sparse.major": "1", "GNU.sparse.name": "s.jpg"}) + member(b"GNUSparseFile.0/s.jpg", b"1\n0\n5\n") + GOOD + END,
    "long-name": member(b"././@LongLink", b"n" * 300 + b".jpg\0", b"L", magic=b"ustar  \0") + member(b"short", b"j") + GOOD + END,
    "long-name-loop": member(b"././@LongLink", b"n" * 600 + b"\0", b"L", magic=b"ustar  \0") * 6 + GOOD + END,
    "long-name-huge": member(b"././@LongLink", b"n" * 9000, b"L", magic=b"ustar  \0") + member(b"short", b"j") + END,
    "size-all-ones": header(b"1.jpg", b"\xff" * 12) + END,
    "size-binary-huge": header(b"1.jpg", b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff") + END,
    "size-no-number": header(b"1.jpg", b"99999999999\0") + END,
    "bad-sum": GOOD[:148] + b"000000\0 " + GOOD[156:] + END,
    "nested": member(b"1.jpg", GOOD + END) + member(b"1.txt", b"t") + END,
    "repeated": member(b"1.jpg", b"a") + member(b"1.txt", b"b") + member(b"1.jpg", b"c") + member(b"1.txt", b"d") + END,
    "upper-case": member(b"A.JPG", b"a") + member(b"A.TXT", b"b") + END,
    "not-text": member(b"\xff\xfe\xc3.jpg", b"a") + member(b"\xff\xfe\xc3.txt", b"b") + END,
    "html": b"<!DOCTYPE html><html><body>503 Slow Down</body></html>" * 20,
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"\x4b" * 600,
}
CAPTIONS = {
    "plain": "a photo of a cat", "empty": "", "nul": "a\0b\0", "bom": "\ufeffa cat", "rtl": "صورة عברית \u202eabc\u202c", "emoji": "👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿 1️⃣",
    "mojibake": "schÃ¶n â€œquotedâ€\x9d ÐŸÑ€Ð¸Ð²ÐµÑ‚ ã\x81\x82", "twice": "Ã¢â‚¬â„¢", "entities": "&amp;amp; &lt;b&gt; &#x1F600; &NTILDE; &notit; &vsupne;",
    "special": "<start_of_text> <end_of_text> 'ſ <ſtart_of_text> \u0345", "escapes": "\x1b[31mred\x1b[0m", "lines": "a <b>\r\n&amp;\u2028c\x85",
    "long": "word " * 300, "one-word": "é" * 3000, "surrogates": "\xed\xa0\xbd\xed\xb8\x8d", "forms": "ＦＵＬＬ ｶﾀｶﾅ ﬁ ǆ e\u0301",
}


def main():
    for folder, seeds in (("tar", TARS), ("caption", CAPTIONS)):
        os.makedirs(f"corpus/{folder}", exist_ok=True)
        for name, data in seeds.items():
            open(f"corpus/{folder}/{name}", "wb").write(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)


main()
