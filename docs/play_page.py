"""The page that plays embedded worlds in a browser: `make page`, or `python docs/play_page.py out=FOLDER`.

Copies `docs/play_here`, exports the worlds as ONNX files, and adds onnxruntime-web from npm. Everything large
is compressed by gzip, and the page inflates it itself: any server of plain files will do.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

import numpy as np

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from diamond_gym import cli, files  # noqa: E402
from diamond_gym.checkpoints import World, load_world  # noqa: E402
from diamond_gym.cli import option  # noqa: E402
from diamond_gym.errors import CacheError, MissingDependencyError  # noqa: E402
from diamond_gym.export_onnx.settings import MIN_OPSET  # noqa: E402

ABOUT = """\
Builds the page that plays the embedded worlds in a browser, without Python. It needs npm, once, for
onnxruntime-web; python -m http.server -d FOLDER serves the page."""
WORLDS = ("Breakout", "Pong")
GAMES_WITH_AGENT = ("Breakout",)
"""Another agent would be 1.1 MB more, and the page is meant to stay below 12 MB."""
MAX_PASSES = 3
DTYPE = "float16"
_SMALLEST_SHARED = 1024
RUNTIME = "onnxruntime-web"
VERSION = "1.22.0"
"""The smallest program of the later versions: 2.9 MB compressed, 3.7 MB in 1.30.0."""
INTEGRITY = "sha512-Ud/+EBo6mhuaQWt/OjaOk0iNWjXqJoeeMFr6xQEERZdIZH2OWpGzuujz7lfuOBjUa6TEE/sc4nb7Da5dNL34fg=="
_WASM = "ort-wasm-simd-threaded.wasm"
_MODULES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs")
_STYLE = DOCS.parent / "diamond_gym" / "play" / "web" / "page"

Entry = dict[str, str | int]


@dataclass
class Settings:
    """Where the page is built.

    Raises:
        InvalidInputError: A value is not accepted.
    """

    out: Path = option(MISSING, "folder to write, which must not exist or be empty")
    runtime: Path | None = option(
        None,
        f"{RUNTIME}-{VERSION}.tgz, where it is here already: it is fetched from npm into this file if not",
    )


def build(settings: Settings) -> None:
    """Build the page.

    Raises:
        CacheError: The folder cannot be written, or the runtime is not what it should be.
        MissingDependencyError: ONNX or npm is not installed.
    """
    with files.new_folder(settings.out) as folder, tempfile.TemporaryDirectory() as work:
        shutil.copytree(DOCS / "play_here", folder, dirs_exist_ok=True)
        for name in ("play.css", "icon.svg", "pad.js"):
            shutil.copy(_STYLE / name, folder)
        runtime = add_runtime(settings.runtime or Path(work) / "runtime.tgz", folder)
        worlds = {game: add_world(game, Path(work) / game, folder) for game in WORLDS}
        files.write_file(folder / "page.json", json.dumps({"runtime": runtime, "worlds": worlds}).encode())
    for name, size in sizes(settings.out).items():
        print(f"{size:>10,} {name}")


def sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file of a page, the largest first, and "in all"."""
    found = {str(f.relative_to(folder)): f.stat().st_size for f in folder.rglob("*") if f.is_file()}
    return dict(sorted(found.items(), key=lambda item: -item[1])) | {"in all": sum(found.values())}


# --- worlds


def add_world(game: str, work: Path, folder: Path) -> dict[str, Entry]:
    """Export a world, and its agent where one is shown; return the list's entries of their files.

    Args:
        game: The game.
        work: A folder for what is exported, not compressed.
        folder: The page.
    """
    contents = export_passes(game, work)
    if game in GAMES_WITH_AGENT:
        contents |= export_agent(game, work / "agent")
    return {kind: add(content, f"{game}/{kind}", folder) for kind, content in contents.items()}


def export_passes(game: str, work: Path) -> dict[str, bytes]:
    """Export a world with 1 to `MAX_PASSES` denoising passes; all but the first as a difference.

    Returns:
        The contents of `world.json`, `denoiser.onnx`, `rew_end_model.onnx` and `contexts.bin`, and of
        `passes_2`, `passes_3`: what makes the first denoiser one of more passes, see `difference`. The key
        `noise_of_passes` of `world.json` has their draws of noise, as `noise.frame` has those of one pass.
    """
    from diamond_gym.export_onnx.export import export_world, stored_as
    from diamond_gym.export_onnx.graphs import NextFrame, to_onnx

    export_world(world_of(game, 1), work, dtype=DTYPE, opset=MIN_OPSET)
    contents = {file.stem: file.read_bytes() for file in files.visible(work)}
    about = json.loads(contents["world"]) | {"noise_of_passes": {}}
    for passes in range(2, MAX_PASSES + 1):
        next_frame = NextFrame(world_of(game, passes).diffusion_model)
        graph = next_frame.graph(about["frame"]["height"], about["frame"]["width"])
        model = stored_as(to_onnx(graph, MIN_OPSET, game), DTYPE).SerializeToString()
        contents[f"passes_{passes}"] = difference(contents["denoiser"], model)
        about["noise_of_passes"][passes] = [int(draw) for draw in next_frame.draws]
    return contents | {"world": json.dumps(about).encode()}


def world_of(game: str, passes: int) -> World:
    """Load an embedded world as exports need it."""
    return load_world(
        game, "embedded", device="cpu", dtype="float32", backend="eager", num_denoising_steps=passes
    )


def export_agent(game: str, out: Path) -> dict[str, bytes]:
    """Export the agent that comes with the package; return the contents of `agent.json` and `agent.onnx`."""
    from trainers.sb3.export_onnx import export
    from trainers.sb3.settings import ExportOnnxSettings

    export(ExportOnnxSettings(game=game, out=out))
    return {
        "agent_json": (out / "agent.json").read_bytes(),
        "agent": (out / "agent.onnx").read_bytes(),
    }


def difference(base: bytes, model: bytes) -> bytes:
    """Return what makes one ONNX file another that has most of its weights.

    Returns:
        Little-endian int32: the number of pieces, and for each its place in `base` and its length. A place of
        -1 is for a piece that is not there; these follow, in order.
    """
    import onnx

    pieces: list[tuple[int, int]] = []
    new, end = b"", 0
    for tensor in onnx.load_from_string(model).graph.initializer:
        weights = tensor.raw_data
        at = model.find(weights, end)
        place = base.find(weights) if len(weights) >= _SMALLEST_SHARED else -1
        if place < 0 or at < 0:
            continue
        pieces += [(-1, at - end), (place, len(weights))]
        new, end = new + model[end:at], at + len(weights)
    pieces.append((-1, len(model) - end))
    numbers = np.array([len(pieces), *(x for piece in pieces for x in piece)], "<i4")
    return numbers.tobytes() + new + model[end:]


def add(content: bytes, name: str, folder: Path) -> Entry:
    """Write a compressed file into the page; return its entry in the list."""
    compressed = gzip.compress(content, 9, mtime=0)
    files.write_file(folder / f"{name}.gz", compressed)
    version = hashlib.sha256(compressed).hexdigest()[:8]
    return {
        "file": f"{name}.gz",
        "bytes": len(compressed),
        "inflated_bytes": len(content),
        "version": version,
    }


# --- onnxruntime-web


def add_runtime(package: Path, folder: Path) -> Entry:
    """Copy what the page needs of onnxruntime-web; return the entry of its program.

    Args:
        package: The package of npm, which is fetched if it is not there.
        folder: The page.

    Raises:
        CacheError: It is another package.
        MissingDependencyError: npm is not installed, or cannot reach its registry.
    """
    if not package.exists():
        fetch(package)
    found = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    if f"sha512-{found}" != INTEGRITY:
        raise CacheError(
            f"{package} is not {RUNTIME} {VERSION}, whose sha512 is another: delete it and try again"
        )
    with tarfile.open(package) as tar:
        contents = {name: _read(tar, f"package/dist/{name}") for name in (*_MODULES, _WASM)}
    for name in _MODULES:
        files.write_file(folder / "ort" / name, contents[name])
    return add(contents[_WASM], f"ort/{_WASM}", folder)


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def fetch(package: Path) -> None:
    """Fetch onnxruntime-web from npm.

    Raises:
        MissingDependencyError: npm is not installed, or cannot reach its registry.
    """
    files.prepare_folder(package.parent)
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, f"{RUNTIME}@{VERSION}"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = (getattr(error, "stderr", "") or str(error)).strip()
            raise MissingDependencyError(
                f"npm could not fetch {RUNTIME} ({why.splitlines()[0]}): install npm, or give "
                f"runtime=FILE with {RUNTIME}-{VERSION}.tgz from its registry"
            ) from None
        shutil.move(next(Path(folder).iterdir()), package)


COMMAND = cli.Command(
    "python docs/play_page.py", ABOUT, Settings, build, usage_of_arguments="out=FOLDER [runtime=FILE]"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build as the arguments say; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
