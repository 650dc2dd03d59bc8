"""Writes data/qwen3_tokens.npz: ids of a hundred prompts by transformers' Qwen2Tokenizer.

python -m tests.parity.make_qwen3_token_goldens           writes the file
python -m tests.parity.make_qwen3_token_goldens --check   compares instead

Needs transformers, and the real vocabulary: `pip install --no-deps dashscope`, whose
resources/qwen.tiktoken has the bytes and ranks of all 151,643 tokens. Ranks are ids, and the pair
that a token is merged from is what its bytes are without it. The file holds the ids, and of the
vocabulary only the merges that occur in these prompts: with them alone the ids are the same, since
the others never applied. Written with transformers 5.24.0, tokenizers 0.23.3, dashscope 2.0.2.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.encoders.qwen3_tokenizer import _ADDED, AFTER, BEFORE

PATH = Path(__file__).parent / "data" / "qwen3_tokens.npz"
TOKENS = 512
FIRST_ADDED = 151_643
Merges = dict[int, tuple[int, int]]  # id -> ids of the pair
WRITTEN = (
    *("", " ", "\n", "a red cube", "A red cube.", " a red cube", "a red cube ", "a\tred\tcube\t"),
    "a photo of a cat sitting on a windowsill, golden hour, 35mm, f/1.8, bokeh",
    "two blue spheres\n\nbeside the table\r\n\r\nand 3 chairs   with   gaps \n  \n end",
    "DON'T you'll we've I'M it's 'S 'Ll can’t they’re rock'n'roll",
    "1234567890 3.14159 1,000,000 ½ ² ₃ ٣٤٥ १२३ Ⅷ ⑨ 10²⁰",
    "x = {'a': [1, 2], \"b\": None}; print(f'{x!r:>{width}}')  # {} % \\n",
    "<b>bold</b> &amp; https://example.org/a_b?c=d&e=%20#f user@example.org",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "Voix ambiguë d'un cœur qui, au zéphyr, préfère les jattes de kiwis",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío, ¿añoraba?",
    "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "Pchnąć w tę łódź jeża lub ośm skrzyń fig",
    "Árvíztűrő tükörfúrógép",
    "Flygande bäckasiner söka hwila på mjuka tuvor",
    "Kæmi ný öxi hér, ykist þjófum nú bæði víl og ádrepa",
    "Pijamalı hasta yağız şoföre çabucak güvendi; İSTANBUL ılık",
    "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "Чуєш їх, доцю, га? Кумедна ж ти, прощайся без ґольфів!",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "דג סקרן שט בים מאוכזב ולפתע מצא לו חברה",
    "נִקּוּד עִבְרִי",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر",
    "قِطٌّ أَبْيَضُ",
    "یک گربهٔ سفید روی میز چوبی قدیمی",
    "ایک سرخ مکعب میز پر",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    "একটি লাল ঘনক টেবিলের উপর",
    "ஒரு சிவப்பு கனசதுரம் மேசை மீது",
    "ఒక ఎర్రటి ఘనం బల్ల మీద",
    "ಒಂದು ಕೆಂಪು ಘನ ಮೇಜಿನ ಮೇಲೆ",
    "ഒരു ചുവന്ന ക്യൂബ് മേശപ്പുറത്ത്",
    "මේසය මත රතු ඝනකයක්",
    "ลูกบาศก์สีแดงอยู่บนโต๊ะไม้เก่า",
    "ກ້ອນສີແດງຢູ່ເທິງໂຕະ",
    "គូបពណ៌ក្រហមនៅលើតុ",
    "စားပွဲပေါ်ရှိ အနီရောင်တုံး",
    "ཤིང་གི་ཅོག་ཙེའི་སྟེང་གི་དམར་པོ།",
    "წითელი კუბი ხის მაგიდაზე",
    "Կարմիր խորանարդ փայտե սեղանի վրա",
    "ቀይ ኩብ በእንጨት ጠረጴዛ ላይ",
    "ᎣᏏᏲ ᏙᎯᏧ",
    "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ",
    "一只红色的立方体放在旧木桌上,旁边有两个蓝色的球。",
    "一隻紅色的立方體放在舊木桌上,旁邊有兩個藍色的球。",
    "いろはにほへと ちりぬるを 赤い立方体、カタカナ、ﾊﾝｶｸ、ＦＵＬＬ",
    "다람쥐 헌 쳇바퀴에 타고파 빨간 정육면체",
    "Do bạch kim rất quý nên sẽ dùng để lắp vô xương; khối lập phương màu đỏ",
    "Kubus merah di atas meja kayu tua; mchemraba mwekundu juu ya meza",
    "Àwọ̀n ọ̀rẹ́ mi ń bọ̀ ní ọ̀la",
    "🙂 emoji 👩\u200d🚀 👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇯🇵🇧🇷 ❤️ 👍🏽 🫠🪿",
    "🀄🂡🎲♟️☕️⚡️ ☃ ♻ ✈︎ ✈️ ➡️ ©️ ™",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, ∑_{i=1}^{n} i² ≈ ∫₀^∞ e^{−x²}dx, 𝔄𝔟 𝒞 𝟙 α≤β≠γ",
    "┌─┬─┐ │█▓▒░│ └─┴─┘ ◆◇○● →⇒↔ ⠓⠑⠇⠇⠕",
    "“curly” ‘quotes’ «guillemets» „low“ —dash– …ellipsis‥ ‰ № § ¶ † ‡ •",
    "e\u0301 caf\u0065\u0301 A\u030a \u1e9b\u0323 \uac00\u11a8 \u1100\u1161 \u0958 \ufb01 \u2126",
    "zero\u200bwidth \ufeffbom soft\u00adhyphen \u2060join nbsp\u00a0here \u3000wide \u2028line",
    "tab\there\vvertical\fform\x00null\x1bescape\x7fdelete\x85next",
    "\u202eright to left\u202c \u061c \u200f mixed עברית and English عربي",
    "private \ue000\uf8ff \U000f0000 unassigned \u0378 last \U0010fffd \ufffd \uffff",
    "a" * 300,
    "Pneumonoultramicroscopicsilicovolcanoconiosis Donaudampfschifffahrtsgesellschaftskapitän",
    "aAaAaA ALLCAPS camelCaseWord snake_case_word kebab-case-word SCREAMING_SNAKE v1.2.3-rc4",
    "     leading and trailing     ",
    "\n\n\n three lines before and after \n\n\n",
    "!?!?!? ... ,,, ;;; ::: --- ___ *** ~~~ $$$ %%% ^^^ ((())) [[[]]] {{{}}} ///\\\\\\",
    "a red cube<|im_end|>",
    "<|im_start|>",
    "<|im_end|>\n<|im_start|>assistant\na blue sphere<|im_end|>\n<|im_start|>user\nanother",
    "<|endoftext|> in the middle <|endoftext|><|endoftext|>",
    "<think>\nreasoning\n</think>\n\nanswer </think><think>",
    "<tool_call>{}</tool_call> <tool_response></tool_response>",
    "<|vision_start|><|image_pad|><|vision_end|> <|box_start|>(1,2)<|box_end|>",
    "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|> <|repo_name|>x<|file_sep|>y",
    "<|IM_END|> <|im_end |> < |im_end|> <|im_end| > <im_end> <|im_sep|> <think > <THINK>",
    "x<|im_end|>y  <|im_end|>  z\n<|im_end|>\n",
    "<|im_end|>" * 600,
    "a cube " * 40,
    "a red cube beside a blue sphere, " * 100,
    "the quick brown fox jumps over the lazy dog. " * 49 + "the quick brown fox",
    "红色的立方体" * 200,
    "🙂" * 700,
    "\n" * 2000,
    " " * 3000,
    "1" * 600,
)


def prompts() -> list[str]:
    """A hundred prompts: the written ones, and random letters of all scripts."""
    random = np.random.default_rng(0)
    found = list(WRITTEN)
    while len(found) < 100:
        most = (0x250, 0x3000, 0x10000, 0x20000)[len(found) % 4]
        letters = (chr(i) for i in random.integers(32, most, 400))
        kept = [x for x in letters if unicodedata.category(x) not in ("Cs", "Cn")]
        spaced = (x + " " * int(random.random() < 0.2) for x in kept[: random.integers(5, 60)])
        found.append("".join(spaced))
    return found


def byte_letters() -> list[str]:
    """The letter of each byte in a vocab.json: itself if it prints, else one from 256 on."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in prints else next(others)) for byte in range(256)]


LETTERS = byte_letters()


def ranks() -> dict[bytes, int]:
    """The real vocabulary: bytes of each token, and its id."""
    package = importlib.util.find_spec("dashscope")
    assert package and package.origin, "pip install --no-deps dashscope"
    lines = (Path(package.origin).parent / "resources/qwen.tiktoken").read_bytes().splitlines()
    pairs = (line.split() for line in lines)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def merge(
    token: bytes, rank_of: Mapping[bytes, int], below: int = FIRST_ADDED
) -> tuple[list[bytes], list[int]]:
    """Returns the parts of bytes that merges of lower rank leave, and the ranks of these merges."""
    parts, applied = [token[i : i + 1] for i in range(len(token))], []
    while True:
        found = [rank_of.get(a + b, below) for a, b in pairwise(parts)]
        if min(found, default=below) >= below:
            return parts, applied
        at = found.index(min(found))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        applied.append(found[at])


def merges_of(rank_of: Mapping[bytes, int], tokens: Iterable[int]) -> Merges:
    """Returns the pair that each of some tokens is merged from."""
    token_of = {rank: token for token, rank in rank_of.items()}
    found: Merges = {}
    for rank in tokens:
        if len(token := token_of[rank]) > 1:
            first, second = merge(token, rank_of, rank)[0]
            found[rank] = rank_of[first], rank_of[second]
    return found


def files(folder: Path, byte_ids: np.ndarray, merges: Merges) -> Path:
    """Writes vocab.json and merges.txt; byte_ids: the id of each byte."""
    text = {int(i): LETTERS[byte] for byte, i in enumerate(byte_ids)}
    for i in sorted(merges):
        text[i] = text[merges[i][0]] + text[merges[i][1]]
    lines = ["#version: 0.2", *(f"{text[a]} {text[b]}" for _, (a, b) in sorted(merges.items()))]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: i for i, token in text.items()}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def tokenizer_json(folder: Path, to: Path) -> Path:
    """Writes the tokenizer.json of a folder's vocab.json and merges.txt, with added tokens."""
    from modality_forcing.encoders.qwen3_tokenizer import _from_merges

    to.mkdir(parents=True, exist_ok=True)
    (to / "vocab.json").write_text("{}")
    (to / "merges.txt").write_text("")
    made = json.loads(_from_merges(to).to_str())
    for name in ("vocab.json", "merges.txt"):
        (to / name).unlink()
    # Of a part of the vocabulary too, the added tokens have their own ids.
    vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
    for i, token in enumerate(made["added_tokens"]):
        token["id"] = vocab[token["content"]] = FIRST_ADDED + i
    merges = (folder / "merges.txt").read_text("utf-8").split("\n")[1:-1]
    made["model"] |= {"vocab": vocab, "merges": [line.split(" ") for line in merges]}
    path = to / "tokenizer.json"
    path.write_text(json.dumps(made, ensure_ascii=False), "utf-8")
    return path


def tokenizer_folder(folder: Path) -> Path:
    """Writes a tokenizer.json of the stored part of the vocabulary, and returns its folder."""
    byte_ids, merges, _ = stored()
    with tempfile.TemporaryDirectory() as parts:
        return tokenizer_json(files(Path(parts), byte_ids, merges), folder).parent


def reference(folder: Path) -> Any:
    """Returns transformers' tokenizer of a folder's vocab.json and merges.txt."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    merges = (folder / "merges.txt").read_text("utf-8").split("\n")[1:-1]
    vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
    made = Qwen2Tokenizer(vocab=vocab, merges=[tuple(line.split(" ")) for line in merges])
    special = [name for name in _ADDED if name.startswith("<|") and "fim" not in name]
    special = [name for name in special if name not in ("<|repo_name|>", "<|file_sep|>")]
    for name in _ADDED:  # in order, as tokenizer_config.json lists them
        made.add_tokens([AddedToken(name, special=name in special, normalized=False)])
    return made


def encode(tokenizer: Any, prompt: str) -> list[int]:
    """Returns the ids of a prompt by transformers, without its padding."""
    made = tokenizer(
        BEFORE + prompt + AFTER, truncation=True, max_length=TOKENS, padding="max_length"
    )
    assert len(made["input_ids"]) == TOKENS
    return made["input_ids"][: sum(made["attention_mask"])]


def used(rank_of: Mapping[bytes, int]) -> set[int]:
    """Returns the tokens that occur at any time while the prompts are merged."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    from modality_forcing.encoders.qwen3_tokenizer import _WORDS

    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    pieces: set[str] = set()
    for prompt in prompts():
        texts = [BEFORE + prompt + AFTER]
        for name in _ADDED:
            texts = [part for text in texts for part in text.split(name)]
        for text in texts:
            normal = normalizers.NFC().normalize_str(text)
            pieces |= {piece for piece, _ in words.pre_tokenize_str(normal)}
    applied = [merge(piece.encode(), rank_of)[1] for piece in pieces]
    return set(chain.from_iterable(applied))


def stored() -> tuple[np.ndarray, Merges, list[list[int]]]:
    """Returns the id of each byte, the merges, and the ids of the prompts in the file."""
    with np.load(PATH, allow_pickle=False) as found:
        ends = np.cumsum(found["lengths"])
        ids = [part.tolist() for part in np.split(found["ids"], ends[:-1])]
        triples = found["merges"].tolist()
        return found["bytes"], {i: (a, b) for i, a, b in triples}, ids


def main(check: bool) -> None:
    from modality_forcing.encoders.qwen3_tokenizer import Qwen3Tokenizer

    rank_of = ranks()
    assert len(rank_of) == FIRST_ADDED and sorted(rank_of.values()) == [*range(FIRST_ADDED)]
    byte_ids = np.array([rank_of[bytes([byte])] for byte in range(256)], np.int32)
    with tempfile.TemporaryDirectory() as name:
        folder = files(Path(name) / "parts", byte_ids, merges_of(rank_of, range(FIRST_ADDED)))
        theirs = reference(folder)
        ids = [encode(theirs, prompt) for prompt in prompts()]
        tokenizer_json(folder, Path(name) / "whole")
        for kind in ("parts", "whole"):
            ours = Qwen3Tokenizer(TOKENS, str(Path(name) / kind))
            for prompt, want in zip(prompts(), ids, strict=True):
                made = ours.encode(prompt)
                assert made["tokens"][made["mask"]].tolist() == want, (kind, prompt)
                assert np.all(made["tokens"][~made["mask"]] == FIRST_ADDED)
    if not check:
        merges = merges_of(rank_of, used(rank_of))
        flat = np.concatenate([np.array(one, np.int32) for one in ids])
        np.savez_compressed(
            PATH,
            ids=flat,
            lengths=np.array([len(one) for one in ids], np.int32),
            bytes=byte_ids,
            merges=np.array([(i, *pair) for i, pair in sorted(merges.items())], np.int32),
        )
    assert stored()[2] == ids
    full = sum(len(one) == TOKENS for one in ids)
    print(
        f"{len(ids)} prompts, {sum(map(len, ids))} tokens, {full} of them cut or full: ours equal "
        f"transformers' from tokenizer.json and from vocab.json; {len(stored()[1])} merges stored"
    )


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
