"""Makes all that the quick start serves: the engine's environment, the model, two adapters, keys; each once.

    python3.11 -m deploy.quickstart.prepare

What is there is left alone; to have a part made anew, remove it from var/. Standard library only, because it is what
makes the environments.
"""

import os
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from deploy.engine import install
from deploy.engine.exclusive import exclusive
from deploy.engine.install import ENGINE, ROOT, Device
from deploy.engine.progress import COUNT, Step, StepError, run

VAR = ROOT / "var"
MODEL = VAR / "models" / "SmolLM2-135M-Instruct"
GGUF = MODEL.with_name(f"{MODEL.name}.gguf")
ADAPTERS = VAR / "adapters.d"
KEYS = VAR / "keys.env"
DATA = {"pirate": "pirate.alpaca.json", "json-answers": "json_answers.sharegpt.json"}
"""The sample adapters, and what in adapters/data each of them learns from."""

QUESTION = "What is the capital of Italy?"


def prepare() -> Device:
    """Makes what is missing and says for which kind of machine. Raises StepError."""
    with exclusive(VAR / "prepare.lock"):
        device = install.make()
        make_model()
        make_adapters()
        make_keys()
    return device


def make_model() -> None:
    """The model's folder and its GGUF file."""
    if MODEL.is_dir() and GGUF.is_file():
        return
    with Step(f"the model {MODEL.name}") as step:
        run(
            [str(ENGINE / "bin" / "python"), "-m", "deploy.quickstart.model"],
            lambda line: step.note(line) if COUNT.match(line) else None,  # libraries print much else
            environment(),
        )


def make_adapters() -> None:
    """Trains the sample adapters that are missing, side by side: such small batches can use one core each."""
    missing = [name for name in DATA if not (ADAPTERS / name).is_dir()]
    if not missing:
        return
    done, answers = dict.fromkeys(missing, (0, 1)), dict.fromkeys(missing, "")
    with Step("training the sample adapters") as step, ThreadPoolExecutor() as pool:

        def train(name: str) -> None:
            def on_line(line: str) -> None:
                if count := COUNT.match(line):
                    done[name] = (int(count[1]), int(count[2]))
                    step.note(f"{sum(at for at, _ in done.values())}/{sum(of for _, of in done.values())} {count[3]}")
                elif line.startswith(QUESTION):
                    answers[name] = line

            run(training(name), on_line, environment(OMP_NUM_THREADS="1"))

        list(pool.map(train, missing))
    for name, answer in answers.items():
        print(f"      {name}: {answer}")


def training(name: str) -> list[str]:
    data = ROOT / "adapters" / "data" / DATA[name]
    command = [str(ENGINE / "bin" / "python"), "-m", "adapters.train", "--base", str(MODEL), "--data", str(data)]
    return [*command, "--out", str(ADAPTERS / name), "--ask", QUESTION]


def environment(**more: str) -> dict[str, str]:
    """For programs of ours that run in the engine's environment."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def make_keys() -> None:
    """A random key for clients and one for administration, readable by their owner only."""
    if KEYS.exists():
        return
    fresh = KEYS.with_suffix(".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        for name in ("GATEWAY_KEY", "GATEWAY_ADMIN_KEY"):
            file.write(f"{name}=sk-{secrets.token_urlsafe(32)}\n")
    fresh.rename(KEYS)


def read_keys() -> dict[str, str]:
    """The keys by the names that gateway.yaml asks for."""
    lines = KEYS.read_text().splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines) if value}


def main() -> int:
    started = time.monotonic()
    try:
        device = prepare()
    except StepError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"  engine ({device.name}), model and adapters are ready in var/  ({time.monotonic() - started:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
