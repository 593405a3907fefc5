"""Datasets as other programs write them: HDF5 files, folders of videos, LeRobot's layouts."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.data.import_episodes import ImportOptions, ImportReport, import_episodes

FPS = 10


@dataclass
class Made:
    """A made-up episode.

    Attributes:
        obs: uint8 (t+1, h, w, 3).
        act: Integers (t,).
        rew: float32 (t,).
    """

    obs: NDArray[np.uint8]
    act: NDArray[Any]
    rew: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.act)


def importer(kind: str) -> Callable[..., tuple[ImportReport, list[EpisodeDataset]]]:
    """Return a function (path, out, **options) that imports data of a kind and checks what it wrote.

    Args:
        kind: The option of `import-episodes` that names such data.
    """

    def imported(path: Path, out: Path, **options: Any) -> tuple[ImportReport, list[EpisodeDataset]]:
        options[kind] = str(path)
        report = import_episodes(ImportOptions(str(out), **options), progress=False)
        datasets = [EpisodeDataset(report.out / name) for name in report.num_episodes]
        for dataset in datasets:
            dataset.check()
        return report, datasets

    return imported


def made(length: int, seed: int = 0, size: int = 64, num_actions: int = 3) -> Made:
    """Make an episode of noise, which no lossy codec keeps; a smooth one is `smooth`."""
    rng = np.random.default_rng(seed)
    obs = rng.integers(0, 256, (length + 1, size, size, 3), np.uint8)
    act = rng.integers(0, num_actions, length)
    act[-1] = num_actions - 1
    return Made(obs, act, (rng.integers(-1, 2, length) / 2).astype(np.float32))


def smooth(length: int, seed: int = 0, size: int = 64) -> Made:
    """Make an episode in which each picture is of one grey level, which tells its time."""
    episode = made(length, seed, size)
    level = (40 + 6 * np.arange(length + 1) + 3 * seed) % 200
    episode.obs[:] = level[:, None, None, None]
    return episode


def assert_same(episode: Episode, source: Made, *, has_final: bool, terminated: bool = True) -> None:
    """Check that an imported episode is exactly its source."""
    assert np.array_equal(episode.obs.permute(0, 2, 3, 1), source.obs[:-1])
    assert episode.act.tolist() == source.act.tolist()
    assert episode.rew.tolist() == source.rew.tolist()
    assert bool(episode.end[-1]) == terminated and not bool(episode.trunc.any())
    final = episode.final_observation
    assert (final is not None) == has_final
    if final is not None:
        assert np.array_equal(final.permute(1, 2, 0), source.obs[-1])


# --- HDF5


def write_robomimic(path: Path, episodes: list[Made], *, next_obs: bool = True, **keywords: Any) -> Path:
    """Write `data/demo_*` with one camera and another observation."""
    import h5py

    with h5py.File(path, "w") as file:
        for i, episode in enumerate(episodes):
            group = file.create_group(f"data/demo_{i}")
            group.attrs["num_samples"] = len(episode)
            group.create_dataset("obs/agentview_image", data=episode.obs[:-1], **keywords)
            group["obs/robot0_eef_pos"] = np.zeros((len(episode), 3))
            if next_obs:
                group.create_dataset("next_obs/agentview_image", data=episode.obs[1:], **keywords)
            group["actions"], group["rewards"] = episode.act, episode.rew
            group["dones"] = (np.arange(len(episode)) == len(episode) - 1).astype(np.int64)
        file["mask/train"] = np.array([b"demo_0"])
    return path


def write_d4rl(path: Path, episodes: list[Made], *, next_obs: bool = False, **keywords: Any) -> Path:
    """Write the flat arrays of D4RL; the second episode is cut short, the last one not over."""
    import h5py

    ends = [np.arange(len(episode)) == len(episode) - 1 for episode in episodes]
    with h5py.File(path, "w") as file:
        obs = np.concatenate([episode.obs[:-1] for episode in episodes])
        file.create_dataset("observations", data=obs, **keywords)
        if next_obs:
            file["next_observations"] = np.concatenate([episode.obs[1:] for episode in episodes])
        file["actions"] = np.concatenate([episode.act for episode in episodes])
        file["rewards"] = np.concatenate([episode.rew for episode in episodes])
        last = len(episodes) - 1
        file["terminals"] = np.concatenate([end & (i not in (1, last)) for i, end in enumerate(ends)])
        file["timeouts"] = np.concatenate([end & (i == 1) for i, end in enumerate(ends)])
        file["infos/qpos"] = np.zeros((len(obs), 2))
    return path


# --- videos


def write_video(path: Path, frames: NDArray[np.uint8], codec: str = "ffv1", **options: str) -> Path:
    """Encode a video; FFV1 keeps RGB exactly, H.264 in YUV does not."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=FPS, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = {"ffv1": "bgr0", "libx264": "yuv420p", "libx264rgb": "rgb24"}[codec]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_table(path: Path, episode: Made, **columns: Any) -> Path:
    """Write the table of a video, which ends with its last row."""
    ends = np.arange(len(episode)) == len(episode) - 1
    columns = {"action": episode.act, "reward": episode.rew, "terminated": ends.astype(int), **columns}
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_videos(folder: Path, episodes: list[Made]) -> Path:
    """Write a lossless video and a table for each episode."""
    for i, episode in enumerate(episodes):
        write_video(folder / f"play_{i}.mkv", episode.obs)
        write_table(folder / f"play_{i}.csv", episode)
    return folder


# --- LeRobot


def write_lerobot(
    folder: Path, episodes: list[Made], version: str = "v3.0", *, codec: str = "libx264rgb", per_file: int = 2
) -> Path:
    """Write a dataset of LeRobot with one camera.

    Args:
        folder: Its folder.
        episodes: The episodes; the frame after the last step has no place.
        version: "v2.1" or "v3.0".
        codec: Of the films; "image" keeps PNG pictures in the tables.
        per_file: Episodes in a file of version 3.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    is_3, camera = version >= "v3", "observation.images.top"
    feature = {"dtype": "image" if codec == "image" else "video", "shape": [*episodes[0].obs.shape[1:]]}
    info = {
        "codebase_version": version,
        "fps": FPS,
        "total_episodes": len(episodes),
        "total_frames": sum(map(len, episodes)),
        "chunks_size": 1000,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        if is_3
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if is_3
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            camera: feature,
            "action": {"dtype": "int64", "shape": [1]},
            "next.reward": {"dtype": "float32", "shape": [1]},
            "next.done": {"dtype": "bool", "shape": [1]},
            "episode_index": {"dtype": "int64", "shape": [1]},
        },
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    per_file = per_file if is_3 else 1
    rows, first = [], 0
    for file in range(0, len(episodes), per_file):
        numbers = {
            "chunk_index": 0,
            "file_index": file // per_file,
            "episode_chunk": 0,
            "episode_index": file,
        }
        path = folder / info["data_path"].format(**numbers)
        path.parent.mkdir(parents=True, exist_ok=True)
        some = episodes[file : file + per_file]
        tables = [pa.table(_lerobot_rows(i, x, codec, camera)) for i, x in enumerate(some, file)]
        pq.write_table(pa.concat_tables(tables), path, row_group_size=max(map(len, some)) - 1)
        if codec != "image":
            film = folder / info["video_path"].format(**numbers, video_key=camera)
            options = {"crf": "0"} if codec == "libx264rgb" else {}
            write_video(film, np.concatenate([x.obs[:-1] for x in some]), codec, **options)
        second = 0.0
        for i, episode in enumerate(some, file):
            row = {"episode_index": i, "length": len(episode), "data/chunk_index": 0}
            row |= {"data/file_index": file // per_file, "dataset_from_index": first}
            row |= {"dataset_to_index": first + len(episode)}
            row |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": file // per_file}
            row |= {f"videos/{camera}/from_timestamp": second}
            second += len(episode) / FPS
            rows.append(row | {f"videos/{camera}/to_timestamp": second})
            first += len(episode)
    if is_3:
        path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    return folder


def _lerobot_rows(index: int, episode: Made, codec: str, camera: str) -> dict[str, Any]:
    length = len(episode)
    columns = {
        "action": episode.act,
        "next.reward": episode.rew,
        "next.done": np.arange(length) == length - 1,
        "episode_index": np.full(length, index),
        "frame_index": np.arange(length),
        "timestamp": (np.arange(length) / FPS).astype(np.float32),
    }
    if codec == "image":
        columns[camera] = [{"bytes": _png(frame), "path": None} for frame in episode.obs[:-1]]
    return columns


def _png(frame: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame).save(file, "png")
    return file.getvalue()
