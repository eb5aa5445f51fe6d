"""Presets: the head scores of the literature as settings of the same axes."""

from corelens.metrics import PRESETS, Metric


def test_presets_are_known_points_of_the_family():
    assert {
        "ram",
        "write_ram",
        "retrieval_head",
        "mmrethead",
        "vrh",
        "vera",
        "qrhead",
        "sparsemm",
        "locos",
        "relative_attention",
    } <= set(PRESETS)
    axes = {
        name: tuple(value for axis, value in vars(metric).items() if axis not in ("name", "label", "source"))
        for name, metric in PRESETS.items()
    }
    assert all(metric.source for metric in PRESETS.values())
    # MMRetHeads and QRHead differ in data alone.
    assert len(set(axes.values())) == len(PRESETS) - 1
    assert axes["ram"] == tuple(vars(Metric("x")).values())[2:-1]
