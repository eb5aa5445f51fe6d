"""The reader of VidSTG, on tiny files of the published form with every kind of broken row."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corelens.data import Evidence, vidstg
from corelens.data.readers.vidstg import FileFrames
from corelens.tokens import Box
from tests.helpers.dataset_files import N_FRAMES, read_with_skips, vidstg_row, write_json, write_video


@pytest.fixture
def vidor(tmp_path: Path) -> Path:
    def thing(tid: int, left: int) -> dict[str, Any]:
        edges = {"xmin": left, "ymin": 5, "xmax": left + 10, "ymax": 25}
        return {"tid": tid, "bbox": edges, "generated": 0, "tracker": "none"}

    trajectories = [[thing(0, frame), *([thing(1, 60)] if frame < 6 else [])] for frame in range(N_FRAMES)]
    annotation = {"video_id": "2401075277", "video_path": "0000/2401075277.mp4", "trajectories": trajectories}
    write_json(tmp_path / "vidor" / "annotation" / "validation" / "0000" / "2401075277.json", annotation)
    write_json(tmp_path / "vidor" / "annotation" / "validation" / "0000" / "77.json", {"trajectories": 5})
    for name in ("2401075277", "77", "88"):
        write_video(tmp_path / "vidor" / "video" / "0000" / f"{name}.mp4")
    return tmp_path / "vidor"


def test_vidstg_gives_the_used_segment_and_the_box_of_every_frame(vidor: Path, tmp_path: Path):
    write_json(tmp_path / "test_annotations.json", [vidstg_row()])
    (sample,) = vidstg(tmp_path, vidor)
    assert (sample.question, sample.answer) == ("who holds a dog?", "adult")
    assert sample.group == "2401075277"
    assert [region.box for region in sample.evidence] == [Box(frame, 5, frame + 10, 25) for frame in (6, 7, 8)]
    # Seconds count from the beginning of the segment, which is frame 4.
    assert [region.seconds for region in sample.evidence] == [(0.2, 0.3), (0.3, 0.4), (0.4, 0.5)]
    (video,) = sample.videos
    assert (len(video.frames), video.fps) == (12, 10)
    greys = [round(float(np.asarray(video.frames[index]).mean()) / 10) for index in (0, 3, 11, 1)]
    assert greys == [4, 7, 15, 5]
    (caption,) = vidstg(tmp_path, vidor, sentences="captions")
    assert caption.question == "an adult holds a dog"


def test_published_evidence_of_vidstg_is_the_whole_frames_of_the_interval(vidor: Path, tmp_path: Path):
    write_json(tmp_path / "test_annotations.json", [vidstg_row()])
    (sample,) = vidstg(tmp_path, vidor, evidence="published")
    # Frames 6 to 8 of a segment that begins with frame 4, at ten frames a second.
    assert sample.evidence == (Evidence(seconds=(0.2, 0.5)),)
    for annotation in vidor.rglob("*.json"):
        annotation.unlink()
    assert len(list(vidstg(tmp_path, vidor, evidence="published"))) == 1  # needs no boxes


def test_vidstg_skips_what_is_broken(vidor: Path, tmp_path: Path):
    question = vidstg_row()["questions"][0]
    rows = [
        vidstg_row(),
        vidstg_row(vid="1"),
        vidstg_row(vid="77"),
        vidstg_row(vid="88"),
        vidstg_row(used_segment={"begin_fid": 4, "end_fid": 99}),
        vidstg_row(temporal_gt={"begin_fid": 2, "end_fid": 9}),
        vidstg_row(temporal_gt={"begin_fid": 9}),
        vidstg_row(questions=[]),
        vidstg_row(fps=0),
        vidstg_row(questions=[question | {"target_id": 5}]),
        vidstg_row(questions=[question | {"target_id": 1}]),
        vidstg_row(questions=[question | {"description": ""}]),
        vidstg_row(questions=[question | {"target_id": 1}], temporal_gt={"begin_fid": 5, "end_fid": 9}),
    ]
    write_json(tmp_path / "test_annotations.json", rows)
    samples, skipped = read_with_skips(vidstg(tmp_path, vidor))
    assert len(samples) == 1
    reasons = [
        "no annotation file 1.json", "is not an annotation file of VidOR", "no annotation file 88.json",
        "4 to 99 is not within its 20 frames", "time 2 to 9 is not within the used segment 4 to 16",
        "no field 'end_fid'", "'questions' are empty", "'fps' is 0",
        "target 5 is none of its objects [0, 1]", "target 1 has no box in VidOR between frames 6 and 9",
        "'description' is '': String should have", "leaves the picture, which is 64 x 48",
    ]  # fmt: skip
    assert len(skipped) == len(reasons)
    for message, reason in zip(skipped.values(), reasons, strict=True):
        assert reason in message
    (vidor / "video" / "0000" / "2401075277.mp4").unlink()
    write_json(tmp_path / "test_annotations.json", [vidstg_row()])
    assert "there is no video file 2401075277.mp4" in read_with_skips(vidstg(tmp_path, vidor))[1]["2401075277-0-0"]


def test_frames_that_a_file_does_not_have_are_an_error(tmp_path: Path):
    write_video(tmp_path / "short.mp4", 5)
    frames = FileFrames(tmp_path / "short.mp4", 2, 9)
    assert len(frames) == 7
    with pytest.raises(ValueError, match="has no frame 8: it ends after 5"):
        frames[6]
    with pytest.raises(IndexError, match="there is no frame 7: the clip has 7"):
        frames[7]
    (tmp_path / "noise.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="cannot be decoded as a video"):
        FileFrames(tmp_path / "noise.mp4", 0, 1)[0]
