"""What the files in `published/` need, and what they give."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.mergekit.formulas import elected, gradient, selected, slerp, stocked, trimmed

Models = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Merge:
    """What a file needs and gives.

    `models` are those that it names, of `layers` layers each; `special` are the tokens that they have beside the
    words that all have. The output has `made` layers, `tokens`, and as its tensors `expected(models, name)`, in
    float64, with a row for each of the tokens; None: what is random, and has no formula here.
    """

    models: tuple[str, ...]
    dtype: torch.dtype
    expected: Callable[[Models, str], Tensor] | None
    kind: str = "llama"
    layers: int = 5
    made: int = 5
    special: Mapping[str, Sequence[str]] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    template: str = ""


def bio_merge(of: Models, name: str) -> Tensor:
    base = of[0][name]
    deltas = [trimmed(model[name] - base, 0.5) for model in of[1:]]
    return base + elected(deltas, [0.5, 0.5], normalize=False)


def ties(of: Models, name: str) -> Tensor:
    base, *others = (model[name] for model in of)
    densities = [gradient([1, 0.7, 0.1], name, 5), 0.5, 0.33]
    weights = [1, gradient([0, 0.3, 0.7, 1], name, 5), 0.5 if "mlp" in name else 0]
    return base + elected([trimmed(W - base, d) for W, d in zip(others, densities, strict=True)], weights)


def linear(of: Models, name: str) -> Tensor:
    return (of[0][name] + 0.3 * of[1][name] + 0.5 * of[2][name]) / 1.8


def gradient_slerp(of: Models, name: str) -> Tensor:
    t = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
    return slerp(gradient(t, name, 40), of[0][name], of[1][name])


def trinity(of: Models, name: str) -> Tensor:
    t = [
        {"filter": "lm_head", "value": 0.55},
        {"filter": "embed_tokens", "value": 0.7},
        {"filter": "self_attn", "value": [0.65, 0.35]},
        {"filter": "mlp", "value": [0.35, 0.65]},
        {"filter": "layernorm", "value": [0.4, 0.6]},
        {"value": 0.5},
    ]
    return slerp(gradient(t, name, 32), of[0][name], of[1][name])


def stacked(*ranges: tuple[int, int, int]) -> Callable[[Models, str], Tensor]:
    """Layers of models one after the other, each from the first number up to the second; what is before them of the
    first model, what is after them of the last.
    """
    origins = [(model, layer) for model, first, end in ranges for layer in range(first, end)]

    def expected(of: Models, name: str) -> Tensor:
        number = re.search(r"\.(\d+)\.", name)
        if number is None:
            return of[ranges[0 if "embed" in name or ".wte" in name or ".wpe" in name else -1][0]][name]
        model, layer = origins[int(number[1])]
        return of[model][name.replace(number[0], f".{layer}.")]

    return expected


def strawberrylemonade(of: Models, name: str) -> Tensor:
    one, two = gradient([0.1, 0.3, 0.1], name, 5), gradient([0.9, 0.7, 0.9], name, 5)
    return slerp(two / (one + two), of[0][name], of[1][name])


def huatuo(of: Models, name: str) -> Tensor:
    return of[0][name] + stocked([model[name] - of[0][name] for model in of[1:]])


def aurora(of: Models, name: str) -> Tensor:
    return of[0][name] + selected([model[name] - of[0][name] for model in of[1:]], 0.5)


HUATUO, MISTRAL = "FreedomIntelligence/HuatuoGPT-o1-8B", "mistralai/Mistral-7B-v0.1"
ORCA, PLATYPUS = "psmathur/orca_mini_v3_13b", "garage-bAInd/Platypus2-13B"
MERGES = {
    "bio-merge": Merge(
        (MISTRAL, "mistralai/Mistral-7B-Instruct-v0.2", "BioMistral/BioMistral-7B"),
        torch.float16,
        bio_merge,
        kind="mistral",
    ),
    "ties": Merge(
        ("TheBloke/Llama-2-13B-fp16", ORCA, PLATYPUS, "WizardLM/WizardMath-13B-V1.0"),
        torch.float16,
        ties,
    ),
    "linear": Merge((ORCA, "WizardLM/WizardLM-13B-V1.2", PLATYPUS), torch.float16, linear),
    "gradient-slerp": Merge((ORCA, PLATYPUS), torch.float16, gradient_slerp, layers=40, made=40),
    "orcamini-platy-44layer": Merge(
        (ORCA, PLATYPUS), torch.float16, stacked((0, 0, 24), (1, 20, 40)), layers=40, made=44
    ),
    "gpt2-small": Merge(("gpt2",), torch.float16, stacked((0, 0, 8)), kind="gpt2", layers=12, made=8),
    "arcee-fusion": Merge(("model_a", "model_b"), torch.bfloat16, None),
    "trinity-v1": Merge(
        ("GreenNode/GreenNodeLM-7B-v1olet", "viethq188/LeoScorpius-7B-Chat-DPO"),
        torch.bfloat16,
        trinity,
        kind="mistral",
        layers=32,
        made=32,
    ),
    "bigstral-12b-32k": Merge(
        ("mistralai/Mistral-7B-Instruct-v0.2",),
        torch.float16,
        stacked(*((0, first, first + 8) for first in range(0, 28, 4))),
        kind="mistral",
        layers=32,
        made=56,
    ),
    "daredevil-7b": Merge(
        (
            MISTRAL,
            "samir-fama/SamirGPT-v1",
            "abacusai/Slerp-CM-mist-dpo",
            "EmbeddedLLM/Mistral-7B-Merge-14-v0.2",
        ),
        torch.bfloat16,
        None,
        kind="mistral",
    ),
    "wingless-moon-maiden": Merge(
        ("SicariusSicariiStuff/Wingless_Imp_8B", "NeverSleep/Lumimaid-v0.2-8B", "Sao10K/L3-8B-Lunaris-v1"),
        torch.float32,
        None,
        special={"NeverSleep/Lumimaid-v0.2-8B": ["<pad>"], "Sao10K/L3-8B-Lunaris-v1": ["<end>", "<pad>"]},
        tokens=("<pad>", "<end>"),
        template="<|start_header_id|>",
    ),
    "velvet-orchid-12b": Merge(
        ("Vortex5/MegaMoon-Karcher-12B", "./intermediates/First", "taozi555/MN-12B-Mag-Mell-R1-KTO"),
        torch.bfloat16,
        None,
        kind="mistral",
        layers=40,
        made=40,
        special={"Vortex5/MegaMoon-Karcher-12B": ["<pad>"], "./intermediates/First": ["<end>"]},
        tokens=("<pad>", "<end>"),
    ),
    "llama3-linear": Merge(
        ("flammenai/Mahou-1.3-llama3-8B", "Danielbrdz/Barcenas-Llama3-8b-ORPO", "Weyaxi/Einstein-v6.1-Llama3-8B"),
        torch.float16,
        lambda of, name: (of[0][name] + of[1][name] + of[2][name]) / 3,
        special={
            "Danielbrdz/Barcenas-Llama3-8b-ORPO": ["<pad>"],
            "Weyaxi/Einstein-v6.1-Llama3-8B": ["<start>", "<end>"],
        },
        tokens=("<pad>", "<start>", "<end>"),
    ),
    "strawberrylemonade-70b": Merge(
        ("sophosympatheia/strawberrylemonade-70b-v1.0", "sophosympatheia/strawberrylemonade-70b-v1.1.0"),
        torch.bfloat16,
        strawberrylemonade,
        special={
            "sophosympatheia/strawberrylemonade-70b-v1.0": ["<pad>", "<end>"],
            "sophosympatheia/strawberrylemonade-70b-v1.1.0": ["<end>"],
        },
        tokens=("<end>",),
    ),
    "huatuo-adapters": Merge(
        (
            f"{HUATUO}+grimjim/Llama-3-Instruct-abliteration-LoRA-8B",
            f"{HUATUO}+eeeebbb2/3aff0ea7-4262-4abb-97b1-1879f340d32e",
            f"{HUATUO}+surya-narayanan/professional_psychology",
            f"{HUATUO}+Blackroot/Llama-3-LongStory-LORA",
            f"{HUATUO}+ResplendentAI/Llama3_RP_ORPO_LoRA",
            f"{HUATUO}+vincentyandex/lora_llama3_chunked_novel_bs128",
            f"{HUATUO}+surya-narayanan/human_sexuality",
        ),
        torch.bfloat16,
        huatuo,
    ),
    "lorablated-70b": Merge(
        ("meta-llama/Meta-Llama-3.1-70B-Instruct+Llama-3-70B-Instruct-abliterated-LORA",),
        torch.bfloat16,
        lambda of, name: of[0][name],
        layers=80,
        made=80,
    ),
    "aurora-sce-12b": Merge(
        (
            "PocketDoc/Dans-PersonalityEngine-V1.1.0-12b+nbeerbower/Mistral-Nemo-12B-abliterated-LORA",
            "Elizezen/Himeyuri-v0.1-12B",
            "inflatebot/MN-12B-Mag-Mell-R1",
            "NeverSleep/Lumimaid-v0.2-12B",
            "LatitudeGames/Wayfarer-12B",
        ),
        torch.bfloat16,
        aurora,
        kind="mistral",
    ),
}
