"""Configuration: strict, frozen pydantic sections, and every problem of a file reported at once.

A section belongs to its stage (`sft/config.py`, ...) and must be importable without torch. The user does not write
`model`, `split` and `run_dir` in a section: they stand at the top of the file, and every stage receives them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails

from trueup.errors import ConfigError, did_you_mean
from trueup.files import Json
from trueup.provenance.commits import HubId
from trueup.provenance.contents import Contents
from trueup.provenance.inputs import elsewhere
from trueup.provenance.masking import masked
from trueup.stages import address, address_from, round_dir, round_of

STARTER = Path(__file__).parent / "data" / "starter"

# ---- Input files ------------------------------------------------------------------------------------------------


def home_expanded(value: Any) -> Any:
    """Text as a path, with `~` as the home folder; anything else unchanged, for pydantic to refuse."""
    if not isinstance(value, str | Path):
        return value
    if "\0" in str(value):
        raise ValueError(f"{str(value)!r}: a path cannot hold a NUL character")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"{value}: starts from the home folder of a user that does not exist") from None


def from_campaign(value: Any, info: ValidationInfo) -> Any:
    """A path from a campaign file: relative to that file, with `~` as the home folder."""
    path = home_expanded(value)
    return info.context["base"] / path if isinstance(path, Path) and info.context else path


RunDirectory = Annotated[Path, BeforeValidator(home_expanded)]
"""A field type for a run: relative to the working directory, where results go."""


def _input_path(starter: str, on_hub: bool = False) -> Any:
    """A field type for a file that a stage reads.

    on_hub  it may be a hub data set too

    The path is relative to the campaign file; `starter` is the file that ships with Trueup. In a stage's identity the
    path does not count, since the manifest has each input's hash: moving a file makes nothing stale.
    """

    def resolve(value: Any, info: ValidationInfo) -> Any:
        if value == "starter" and starter:
            return STARTER / starter
        is_id = on_hub and isinstance(value, str) and info.context
        remote = elsewhere(value, info.context["base"]) if is_id and info.context else None
        return remote or from_campaign(value, info)

    def serialize(value: Path, info: SerializationInfo) -> str:
        return "<input>" if info.context and info.context.get("identity") else str(value)

    return Annotated[Path, BeforeValidator(resolve), PlainSerializer(serialize)]


DemonstrationsPath = _input_path("demonstrations.jsonl", on_hub=True)
PromptsPath = _input_path("prompts.jsonl", on_hub=True)
PreferencesPath = _input_path("", on_hub=True)
InputPath = _input_path("")


# ---- Addresses --------------------------------------------------------------------------------------------------


def _from_environment(value: Any) -> Any:
    def variable(match: re.Match[str]) -> str:
        if (value := os.environ.get(match[1])) is None:
            raise ValueError(f"names the environment variable {match[1]}, which is not set")
        return value

    return re.sub(r"\$\{(\w+)\}", variable, value) if isinstance(value, str) else value


SecretUrl = Annotated[str, BeforeValidator(_from_environment), PlainSerializer(masked)]
"""A field type for an address that may hold a password. `${NAME}` in it comes from the environment. A stage writes it
masked (config.yaml, manifest, identity), so a new password makes nothing stale."""


def _of_the_web(value: str) -> str:
    address = masked(value)
    try:
        parts = urlsplit(value)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ValueError(f"is no web address: {error} (found {address!r})") from None
    if not is_address or any(character.isspace() for character in value):
        raise ValueError(f"is no web address, such as http://127.0.0.1:8000/v1 (found {address!r})")
    return value


SecretWebUrl = Annotated[SecretUrl, AfterValidator(_of_the_web)]

# ---- Sections ---------------------------------------------------------------------------------------------------


class Section(BaseModel):
    """A part of the campaign file. Unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,  # a key's meaning, in docs/config.md, in `trueup keys` and in an editor
    )


class SplitConfig(Section):
    """The prompts that no stage may train on. A dialogue's first question decides, so all stages agree."""

    heldout_fraction: float = Field(0.25, ge=0, lt=1)
    """Share of the prompts that no stage trains on; every figure of the report is measured on them."""
    judge_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the prompts whose labels train a second reward model and nothing else. It can judge the comparison
    (`compare.judges`), because neither the policy nor the first reward model ever saw those labels."""
    salt: str = "trueup"
    """Text that is hashed with every prompt. Another text draws another split."""
    near_duplicates: Literal["drop", "keep"] = "drop"
    """What happens to prompts that may be trained on and are nearly the same as a held-out one, by their runs of 5
    characters: `drop` leaves them out of training, counts them and lists them in the stage's near_duplicates.jsonl,
    `keep` reports them. Fillings of one form ("Write the plural of ...") are questions of their own, and stay."""

    @model_validator(mode="after")
    def _leaves_some(self) -> SplitConfig:
        if self.heldout_fraction + self.judge_fraction >= 1:
            raise ValueError("heldout_fraction and judge_fraction together leave no prompt to train on")
        return self


HOLDS_OUT = ("heldout_fraction", "judge_fraction", "salt")
"""The keys of a split that say which prompts are held out."""


class EndpointParameters(Section):
    """Parameters of requests to an OpenAI-compatible endpoint; `null` leaves a key out of the request."""

    temperature: float | None = Field(0.0, ge=0)
    """Sampling temperature. `null` leaves it to the endpoint: some models allow no other, and answer 400 to any."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens of a reply, its thinking included. A reply that is cut there counts as no reply."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """The same limit under the name that newer endpoints of OpenAI want."""
    extra_body: Json = {}
    """Other keys of the request, as the endpoint calls them: {reasoning_effort: low, seed: 1}."""
    timeout_s: float = Field(120.0, gt=0)
    """Seconds for a whole request, from the connection to the last byte."""

    @model_validator(mode="after")
    def _leaves_the_question(self) -> EndpointParameters:
        ours = {"model", "messages", "stream", "n", "temperature", "max_tokens", "max_completion_tokens"}
        if keys := sorted(ours & set(self.extra_body)):
            raise ValueError(f"extra_body.{keys[0]}: is set by Trueup, or by a key of this section")
        if self.max_tokens and self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are two names of one limit: leave one out")
        for key, value in self.extra_body.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError):
                raise ValueError(f"extra_body.{key}: is not JSON, so it cannot be sent (found {value!r})") from None
        return self

    def body(self) -> Json:
        """The keys of a request that these parameters set."""
        names = ("temperature", "max_tokens", "max_completion_tokens")
        return {name: value for name in names if (value := getattr(self, name)) is not None} | self.extra_body

    def differing(self) -> str:
        """` (temperature null, seed 1)`: the parameters that differ from the defaults; empty if none does."""
        usual, body = EndpointParameters().body(), self.body()
        other = [name for name in {**usual, **body} if usual.get(name) != body.get(name)]
        return f" ({', '.join(f'{name} {json.dumps(body.get(name))}' for name in other)})" if other else ""


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed in the range of NumPy's generators."""


class StageConfig(Section):
    """Keys of every stage."""

    stage: ClassVar[str]
    """The command's name, and the section of the campaign file."""
    run: ClassVar[str]
    """`module:function` that runs the stage; a string, so that a config can be read without torch."""
    check: ClassVar[str | None] = None
    """`module:function` that checks the stage's own keys (trueup.check.StageCheck)."""
    check_rows: ClassVar[str | None] = None
    """`module:function` that checks the rows of all files (trueup.check.RowsCheck)."""
    verify: ClassVar[str | None] = None
    """`module:function` that compares a finished stage's store with its manifest (trueup.verify.StageVerify)."""
    report: ClassVar[str]
    """`module:name` of the schema of its report.json."""
    trains: ClassVar[bool] = False
    """Whether several processes can share its work, as `launch` asks for."""
    further_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys that only the stage of a further round reads."""

    run_dir: Path = Field(exclude=True)
    """The round's folder, in the first round the campaign's. It is no part of a stage's identity: a run may move."""
    split: SplitConfig = SplitConfig()
    seed: Seed = 0
    """Seed of this stage's random numbers; by default it is the campaign's."""

    def completed(self, stages: Mapping[str, Any]) -> Self:
        """The config with the defaults that follow from other stages of the campaign."""
        return self

    def in_round(self, number: int) -> Self:
        """The config of a further round's stage, from the first round's."""
        return self.model_copy(update={"run_dir": round_dir(self.run_dir, number)})

    @property
    def round(self) -> int:
        """The number of the round that the stage is in; 1 for SFT."""
        return round_of(self.run_dir)

    @property
    def address(self) -> str:
        """Its name in the campaign: `align`, `round-2/align`."""
        return address(self.round, self.stage)

    def conflicts(self, stages: Stages) -> list[str]:
        """Lines `key: problem` for keys that are right by themselves, and wrong beside those of other stages."""
        return []

    def not_shared(self, processes: int) -> dict[str, str]:
        """Problems, by key, that keep so many processes from training the stage together. None where none trains."""
        return {}

    @property
    def remark(self) -> str:
        """What the plan says of the stage besides why it runs; most need no remark."""
        return ""

    def parents(self) -> tuple[str, ...]:
        """The stages whose results this one reads: `reward` of the same round, `round-1/reward` of that one."""
        return ()

    def parent_names(self) -> list[str]:
        """Their names in the campaign."""
        return [address_from(self.run_dir, parent) for parent in self.parents()]

    def also_read(self) -> list[Path]:
        """Files that decide on the result, which stays when they change; what was begun does not go on then."""
        return []

    def input_paths(self) -> list[Path]:
        """The files that this stage reads, besides its parents' results."""
        return []

    def contents(self) -> dict[str, Contents | None]:
        """Hashes of files that are no inputs, by the key that names them: the files of a model, a template."""
        return {}

    def hub_ids(self) -> list[HubId]:
        """The hub ids that this stage reads, each with its branch, tag or commit."""
        return []

    def fingerprint(self) -> dict[str, str | None]:
        """Hashes of all else that the result depends on: the content of a label store, a rubric's code."""
        return {}

    def identity(self) -> Json:
        """The resolved configuration as plain data, without secrets. Equal identities give equal results."""
        unread = set(self.further_keys) if self.round == 1 else None
        return masked(self.model_dump(mode="json", context={"identity": True}, exclude=unread))

    def sha256(self) -> str:
        """Hash of the identity, independent of key order."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


Stages = Mapping[str, StageConfig]
"""The configs of a campaign's stages, by name."""
S = TypeVar("S", bound=Section)


class Problems(ValueError):
    """Several problems that a validator found in one section: lines of the form `key: message`."""

    def __init__(self, lines: list[str]):
        self.lines = lines
        super().__init__("; ".join(lines))


# ---- Loading ----------------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> Json:
    """The mapping in a YAML file; a ConfigError names file and line if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(path, ["no such file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, [f"cannot be read: {error}"]) from None
    try:
        loaded = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(path, [f"{where}{getattr(error, 'problem', None) or error}"]) from None
    if not isinstance(loaded, dict):
        raise ConfigError(path, [f"a campaign is a mapping of keys to values, found {type(loaded).__name__}"])
    return loaded


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses duplicate keys, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key, mark = self.construct_object(key_node, deep=deep), key_node.start_mark
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} cannot be a key", mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is written twice", mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1, which PyYAML follows, reads 1e-3 as text, since it requires a dot before the exponent.
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def set_key(config: Json, assignment: str) -> None:
    """Apply one `--set a.b=value`; the value is read as YAML."""
    key, separator, text = assignment.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError("--set", [f"{assignment!r} is not of the form key.subkey=value"])
    target: Any = config
    for part in parts[:-1]:
        place = _place(target, part, key)
        section = {} if isinstance(place, str) and target.get(place) is None else target[place]
        if isinstance(place, int) and isinstance(section, str):
            section = {"path": section}  # a file that stands in its list without other keys
        if not isinstance(section, dict | list):
            raise ConfigError("--set", [f"{key}: {part} is not a section"])
        target[place] = copy.copy(section)  # through a YAML anchor, other stages may share this section
        target = target[place]
    try:
        target[_place(target, parts[-1], key)] = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError("--set", [f"{assignment!r}: {getattr(error, 'problem', None) or error}"]) from None


def _place(section: object, part: str, key: str) -> str | int:
    """A part of a key such as `sft.data.0.max_rows`; of a list it is a number."""
    if not isinstance(section, list):
        return part
    if not part.isdecimal() or int(part) >= len(section):
        raise ConfigError("--set", [f"{key}: {part} is no place in a list of {len(section)}; they count from 0"])
    return int(part)


def validate(schema: type[S], values: Mapping[str, object], base: Path, prefix: str, problems: list[str]) -> S | None:
    """An instance of `schema`, or None with one line per problem added to `problems`.

    `base` is the folder that relative input paths start from, `prefix` the section's name and a dot.
    """
    try:
        return schema.model_validate(values, context={"base": base})
    except ValidationError as error:
        by_key: dict[str, list[str]] = {}
        for detail in error.errors():
            cause = detail.get("ctx", {}).get("error")
            if isinstance(cause, Problems):
                problems.extend(prefix + line for line in cause.lines)
                continue
            key, message = _describe(schema, detail)
            by_key.setdefault(prefix + key if key else prefix.removesuffix("."), []).append(message)
        # A value that fits no branch of a union has one problem per branch.
        problems.extend(f"{key}: {', or: '.join(messages)}" for key, messages in by_key.items())
        return None


def _describe(schema: type[BaseModel], detail: ErrorDetails) -> tuple[str, str]:
    """The user's key, and what is wrong with its value."""
    keys, within = _user_keys(schema, detail["loc"], known=detail["type"] != "extra_forbidden")
    key = ".".join(keys)
    if detail["type"] == "extra_forbidden":
        names = [name for name in within.model_fields if name != "run_dir"] if within else []
        return key, f"unknown key{did_you_mean(keys[-1], names)}"
    if detail["type"] == "missing":
        return key, "is required"
    if detail["type"] == "value_error":
        return key, detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "path_type":
        return key, f"must be a path (found {detail['input']!r})"
    return key, f"{detail['msg']} (found {detail['input']!r})"


def _user_keys(schema: Any, location: tuple[int | str, ...], known: bool) -> tuple[list[str], type[BaseModel] | None]:
    """The keys of a location (pydantic adds the branch of a union), and the section that they end in."""
    keys: list[str] = []
    section = section_in(schema)
    for part in location:
        if isinstance(part, str) and section and part in section.model_fields:
            schema = section.model_fields[part].annotation
            keys.append(part)
            section = section_in(schema)
        elif isinstance(part, int) or not known:
            keys.append(str(part))
    return keys, section


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section in a field's type, which may be a list of sections."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((section for part in get_args(annotation) if (section := section_in(part))), None)
