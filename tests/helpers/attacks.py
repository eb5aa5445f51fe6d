"""Attacks on corelens: the tests that make them, by kind, counted from their results for docs/robustness.md."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree


@dataclass(frozen=True)
class Attack:
    """One kind of attack and the tests that make it."""

    tried: str
    outcome: str
    tests: tuple[str, ...]
    """Names of test functions."""


ATTACKS = (
    Attack(
        "bits of stored parts, manifests, summaries and scores flipped, files cut off, checksums replaced",
        "refused by the name of the file, with the way out",
        (
            "test_flipped_bits_and_cuts_are_refused_by_name",
            "test_a_checksum_needs_its_place_and_is_checked_as_text",
        ),
    ),
    Attack(
        "parts and summaries of other runs, in other places, twice",
        "refused until the part is deleted; then measured anew, to the same numbers",
        (
            "test_parts_and_summaries_of_other_places_and_runs_are_refused",
            "test_a_harmed_folder_is_refused_until_the_part_is_deleted",
            "test_folders_refuse_other_scans_and_other_writers",
            "test_a_folder_whose_manifest_is_of_something_else_is_refused_by_name",
            "test_folders_without_a_finished_run_are_refused",
        ),
    ),
    Attack(
        "runs resumed with another model: weights, offloaded weights, adapters, settings, processor, template, hooks",
        "refused, and the message names what differs",
        ("test_a_folder_refuses_the_run_of_a_changed_model",),
    ),
    Attack(
        "runs resumed with other samples: question, answer, box, pixels of a picture, frames, what a function returns",
        "another fingerprint for each",
        ("test_samples_that_differ_have_other_hashes", "test_changed_evidence_is_another_run"),
    ),
    Attack(
        "processes and Ray actors killed at any moment, memory that runs out, a full disk",
        "no file is half-written, and the resumed run has the same bytes",
        (
            "test_a_scan_killed_at_any_moment_ends_with_the_same_bytes",
            "test_a_killed_run_ends_with_the_same_bytes",
            "test_a_killed_actor_costs_nothing_and_either_scan_goes_on_with_the_other",
            "test_a_killed_run_ends_like_an_unbroken_one",
            "test_batches_shrink_when_memory_runs_out",
            "test_a_full_disk_leaves_what_was_there_and_says_so",
        ),
    ),
    Attack(
        "samples whose pictures, boxes, answers or prompts are broken, and on which the model's own code fails",
        "left out with the reason; the others are measured",
        (
            "test_samples_that_cannot_be_measured_are_left_out_with_their_reason",
            "test_samples_on_which_the_models_own_code_fails_are_left_out",
            "test_samples_that_cannot_be_swept_are_left_out_with_their_reason",
            "test_no_error_of_a_picture_ends_a_scan",
            "test_prompts_longer_than_the_context_are_refused",
            "test_damaged_missing_and_foreign_files",
        ),
    ),
    Attack(
        "data sets with rows that are broken, name files elsewhere, or nest too deep",
        "these rows are refused with their line and the reason; the others are read",
        (
            "test_videomme_skips_what_is_broken",
            "test_mmlongbench_skips_what_is_broken",
            "test_mmlongbench_skips_broken_examples",
            "test_mmlongbench_doc_skips_what_is_broken",
            "test_mmdocir_skips_what_is_broken",
            "test_vidstg_skips_what_is_broken",
            "test_mlvu_skips_what_is_broken",
            "test_refcocog_skips_what_is_broken",
            "test_rows_name_no_picture_outside_of_the_data_set",
            "test_rows_that_are_refused_have_their_line_and_the_others_are_read",
            "test_what_is_wrong_with_a_row_is_said",
            "test_what_is_no_data_is_refused_at_once",
        ),
    ),
    Attack(
        "archives that hold links, devices, files outside of their folder, or are cut off",
        "refused by name, and nothing is written outside",
        ("test_what_is_no_file_of_the_folder_is_refused_by_name",),
    ),
    Attack(
        "head lists, head sets and scores that are malformed, or of another form or shape",
        "one error that names the file and the field",
        (
            "test_malformed_lists_are_one_error_that_names_the_file",
            "test_a_head_list_that_is_not_one_is_refused_by_field",
            "test_files_of_malformed_heads_are_one_error_that_names_the_file",
            "test_files_that_hold_no_head_set_are_refused_by_name",
            "test_what_is_no_head_is_refused",
            "test_files_of_another_form_are_refused",
            "test_scores_that_cannot_be_are_refused_where_they_are_made_and_read",
            "test_files_about_something_else_are_refused",
        ),
    ),
    Attack(
        "models that write NaN",
        "the layer is named, and no head vanishes from a ranking",
        ("test_a_model_of_nan_is_reported_with_its_layer", "test_attention_that_would_be_nan_raises_an_error"),
    ),
    Attack(
        "models changed, compiled, trained, quantised or replaced under their hooks",
        "refused: no hook acts on nothing",
        (
            "test_hooks_that_would_act_on_nothing_or_on_half_are_refused",
            "test_weights_of_modules_that_no_longer_run_are_refused",
            "test_w_o_is_what_acts_and_weights_that_do_not_act_are_not_zeroed",
            "test_models_that_cannot_be_wrapped",
            "test_a_call_by_another_thread_during_a_hooked_pass_is_its_own_or_refused",
        ),
    ),
    Attack(
        "messages to the explorer: absurd numbers, 20,000 words, deep nesting, foreign hosts and origins",
        "answered by a short error, and the next message is answered",
        (
            "test_absurd_states_are_a_mistake_of_who_sends_them",
            "test_a_foreign_host_is_rejected",
            "test_a_foreign_origin_is_rejected",
        ),
    ),
    Attack(
        "commands with numbers, names and files that cannot be",
        "one line with the way out, before the model is loaded",
        (
            "test_what_is_wrong_is_said_before_the_model_is_loaded",
            "test_mistakes_are_named_before_anything_is_written",
            "test_mistakes_are_said_before_anything_is_written",
            "test_mistakes_in_the_command_are_named",
            "test_mistakes_of_the_command_are_named",
            "test_plans_that_change_nothing_are_named_before_anything_runs",
        ),
    ),
    Attack(
        "pickled weights, code in checkpoints, other versions of transformers",
        "refused by name",
        (
            "test_pickled_weights_are_refused",
            "test_remote_code_is_refused_by_name",
            "test_older_versions_are_refused_and_newer_ones_are_announced",
            "test_the_model_cannot_be_imported_with_an_older_version",
        ),
    ),
    Attack(
        "every operation on a device that does not mix with the CPU, on two, and with offloaded weights",
        "runs where the model is, to the same values",
        ("test_every_operation_runs_where_the_model_is", "test_gradients_run_where_the_model_is"),
    ),
)


def counts(results: list[Path]) -> dict[str, int]:
    """Number of tries that were made of each attack, and failed, by what was tried."""
    made = {attack.tried: 0 for attack in ATTACKS}
    kinds = {test: attack.tried for attack in ATTACKS for test in attack.tests}
    for test, n in sorted(set(_passed(results))):
        if kind := kinds.get(test.partition("[")[0].rpartition(".")[2]):
            made[kind] += n
    return made


def _passed(results: list[Path]) -> Iterator[tuple[str, int]]:
    """Each test that passed, and the number of tries that it records; a test that records none is one."""
    for path in results:
        for case in ElementTree.parse(path).iter("testcase"):
            if not any(case.find(outcome) is not None for outcome in ("failure", "error", "skipped")):
                records = {str(entry.get("name")): str(entry.get("value")) for entry in case.iter("property")}
                yield f"{case.get('classname')}.{case.get('name')}", int(records.get("tries", 1))
