"""Small tokenizers of three kinds, and the ids that OpenCLIP's own classes give of seeded captions, with every choice they drew.

    python tokenizers.py OUT      (needs transformers beside open_clip; writes shard-loader/tests/goldens/tokenizers)
"""
import json, pathlib, random, sys
sys.path = [p for p in sys.path if pathlib.Path(p or ".").resolve() != pathlib.Path(__file__).resolve().parent]  # this file has a library's name
import torch, open_clip, tokenizers, transformers
from open_clip import tokenizer as oc
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

assert open_clip.__version__ == "3.3.0", open_clip.__version__
SEED = 17
WORDS = "a the of red blue old small photo drawing cat dog Ship harbour über café naïve 北京 Москва don't it's 3 2021 50% (left) #tag snake_case mid-air e.g. &amp; &lt;b&gt; “quote” ﬁne ×2 🙂 ...".split()


def captions():
    rng = random.Random(SEED)
    fixed = ["", " ", "...", "___", "A  photo\tof_a CAT!", "<start_of_text> and <end_of_text>", "[SEP] [CLS]", "</s>", "x" * 60]
    return fixed + [rng.choice([" ", " ", "  ", ", ", "_"]).join(rng.choice(WORDS) for _ in range(rng.choice([1, 3, 7, 12, 25]))) for _ in range(90)]


def train(out):
    text = captions() * 3
    bert = Tokenizer(models.WordPiece(unk_token="[UNK]")); bert.normalizer = normalizers.BertNormalizer(lowercase=True); bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert.train_from_iterator(text, trainers.WordPieceTrainer(vocab_size=220, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    bert.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", bert.token_to_id("[CLS]")), ("[SEP]", bert.token_to_id("[SEP]"))])
    transformers.PreTrainedTokenizerFast(tokenizer_object=bert, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", bos_token="[CLS]", eos_token="[SEP]").save_pretrained(out / "wordpiece")
    t5 = Tokenizer(models.Unigram()); t5.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]); t5.pre_tokenizer = pre_tokenizers.Metaspace(); t5.decoder = decoders.Metaspace()
    t5.train_from_iterator(text, trainers.UnigramTrainer(vocab_size=260, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"))
    t5.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", t5.token_to_id("</s>"))])
    transformers.PreTrainedTokenizerFast(tokenizer_object=t5, pad_token="</s>", eos_token="</s>", unk_token="<unk>").save_pretrained(out / "unigram")
    bpe = Tokenizer(models.BPE()); bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False); bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(text, trainers.BpeTrainer(vocab_size=420, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    bpe.post_processor = processors.RobertaProcessing(("</s>", bpe.token_to_id("</s>")), ("<s>", bpe.token_to_id("<s>")), trim_offsets=True, add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", unk_token="<unk>").save_pretrained(out / "bytes")


class Recorded:
    """Python's and PyTorch's draws, kept as they come."""
    def __enter__(self):
        self.drawn, self.old = [], (oc.random.randint, torch.randperm)
        oc.random.randint = lambda low, high: self.keep(self.old[0](low, high))
        torch.randperm = lambda n: self.keep(self.old[1](n))
        return self

    def keep(self, value): self.drawn.append(value.tolist() if torch.is_tensor(value) else value); return value

    def __exit__(self, *_): oc.random.randint, torch.randperm = self.old


def main(out):
    out.mkdir(parents=True, exist_ok=True); train(out)
    cases = []
    for folder, kwargs in [("wordpiece", dict(strip_sep_token=True)), ("wordpiece", dict(clean="lower")), ("unigram", dict(clean="canonicalize")), ("bytes", {}), ("bytes", dict(tokenizer_mode="clips"))]:
        for context in (8, 32):
            tokenizer = oc.HFTokenizer(str(out / folder), context_length=context, **kwargs)
            cases.append(dict(folder=folder, context=context, **kwargs, ids=[row.tolist() for row in tokenizer(captions())]))
    random.seed(SEED); torch.manual_seed(SEED)
    masks = []
    for reduction in ("simple", "random", "shuffle"):
        for context in (5, 16):
            tokenizer = oc.SimpleTokenizer(context_length=context, reduction_mask=reduction); rows = []
            for text in captions():
                with Recorded() as recorded: ids = tokenizer(text)[0].tolist()
                rows.append(dict(ids=ids, drawn=recorded.drawn[0] if recorded.drawn else None))
            masks.append(dict(reduction=reduction, context=context, rows=rows))
    simple = oc.SimpleTokenizer(context_length=20, clean="canonicalize")
    canonical = dict(context=20, ids=[row.tolist() for row in simple(captions())], cleaned=[oc._clean_canonicalize(text) for text in captions()])
    versions = dict(open_clip=open_clip.__version__, transformers=transformers.__version__, tokenizers=tokenizers.__version__, command="python tests/peers/tokenizers.py shard-loader/tests/goldens/tokenizers", seed=SEED)
    (out / "ids.json").write_text(json.dumps(dict(versions=versions, captions=captions(), files=cases, masks=masks, canonical=canonical), separators=(",", ":"), ensure_ascii=True) + "\n")
    for folder in ("wordpiece", "unigram", "bytes"):
        for path in (out / folder).iterdir():
            if path.name not in ("tokenizer.json", "tokenizer_config.json"): path.unlink()
            else: path.write_text(json.dumps(json.loads(path.read_text()), separators=(",", ":")) + "\n")
    print({str(p.relative_to(out)): p.stat().st_size for p in sorted(out.rglob("*")) if p.is_file()})


main(pathlib.Path(sys.argv[1]))
