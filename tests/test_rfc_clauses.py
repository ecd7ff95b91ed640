"""Each MUST and MUST NOT of RFC 9111, and each SHOULD that we follow, names the test that holds it, which cites its
clause. SHOULDs that we don't follow are in docs/decisions/0150."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
LETTER, FIELDS, BASE, SEMANTICS = (
    f"system/test_rfc{name}.py" for name in ("_letter", "_fields", "9111", "9110")
)
STORING, BROKEN, RANGES, PASSING = (
    f"system/test_{name}.py" for name in ("misses_storing", "misses_broken", "misses_ranges", "passing")
)
ORACLE = "protocols/test_freshness_oracle.py"
# (clause, requirement in short, file, test)
REQUIREMENTS = [
    ("1.2.2", "MUST take delta-seconds that overflow for 2^31", BASE, "test_reuse"),
    ("3", "MUST NOT store unless the method is understood", LETTER, "test_other_methods_are_not_stored"),
    ("3", "MUST NOT store unless the status is final", LETTER, "test_interim_responses"),
    ("3", "MUST NOT store with no-store, or private in a shared cache", BASE, "test_reuse"),
    ("3", "MUST NOT store unless freshness is explicit or the status heuristically cacheable", FIELDS,
     "test_every_final_status"),
    ("3.1", "MUST include all fields, known or not, less the hop-by-hop ones", BASE, "test_fields_that_are_stored"),
    ("3.1", "trailer fields MUST NOT be combined with the head", LETTER, "test_trailers_are_not_merged"),
    ("3.2", "MUST add each field of the newer response, but Content-Length and what describes the body", BASE,
     "test_a_304_updates_what_it_may"),
    ("3.2", "an updated Cache-Control is in force", LETTER, "test_a_304_that_forbids"),
    ("3.3", "MUST NOT answer with an incomplete response as if it were whole", LETTER,
     "test_what_broke_off_is_not_whole"),
    ("3.3", "MUST NOT send a part without marking it 206", RANGES,
     "test_a_seek_costs_what_is_asked_for_and_two_slices"),
    ("3.3", "MUST NOT store what broke off as whole", BROKEN,
     "test_a_fill_is_resumed_once_and_then_broken_and_nothing_stays"),
    ("3.4", "parts combine under one strong validator only", BROKEN,
     "test_content_that_changed_meanwhile_is_never_joined_to_the_old"),
    ("3.4", "parts without a strong validator don't combine", RANGES,
     "test_parts_without_a_strong_validator_pass_exactly"),
    ("3.5", "MUST NOT reuse an answer to Authorization unless a directive allows it", BASE, "test_authorization"),
    ("4", "MUST NOT reuse for another target", BASE, "test_another_target"),
    ("4", "MUST NOT reuse what is neither fresh, allowed stale, nor validated", BASE, "test_generic_when_disconnected"),
    ("4", "MUST generate Age, replacing what is there", BASE, "test_age_is_generated"),
    ("4", "MUST write unsafe methods through, and not answer before the origin has", LETTER,
     "test_unsafe_methods_are_written_through"),
    ("4.1", "MUST use the most recent of several", LETTER, "test_the_newest_variant_is_used"),
    ("4.1", "MUST NOT reuse unless all fields that Vary names match", BASE, "test_vary"),
    ("4.1", "an absent field matches only an absent one", LETTER, "test_how_values_are_compared"),
    ("4.1", "* always fails to match", BASE, "test_reuse"),
    ("4.2", "MUST NOT let local time zones count", FIELDS, "test_the_time_zone_of_the_box_counts_for_nothing"),
    ("4.2", "SHOULD match dates without case, and refuse other zones than GMT", FIELDS, "test_reuse"),
    ("4.2.1", "s-maxage, then max-age, then Expires less Date", BASE, "test_reuse"),
    ("4.2.2", "MUST NOT use heuristics beside an explicit time", FIELDS, "test_reuse"),
    ("4.2.3", "the age is the corrected one", STORING, "test_age_of_a_stored_answer_advances"),
    ("4.2.4", "MUST NOT generate a stale response where a directive forbids it", BASE, "test_stale_is_forbidden"),
    ("4.2.4", "MUST NOT generate one unless disconnected or permitted", BASE, "test_generic_when_disconnected"),
    ("4.3.1", "MUST send the stored entity tag, SHOULD send Last-Modified", BASE, "test_validators_are_sent"),
    ("4.3.1", "nothing but what is stored is sent", LETTER, "test_which_validators_are_sent"),
    ("4.3.2", "MUST NOT evaluate conditions that are for an origin", BASE, "test_conditions_for_the_origin"),
    ("4.3.3", "MUST use a full response to satisfy the request", BASE, "test_answers_to_a_validation"),
    ("4.3.4", "MUST NOT update by a 304 whose strong validator matches nothing", STORING,
     "test_a_304_about_something_else_makes_the_box_ask_without_conditions"),
    ("4.3.4", "MUST update what the 304 selects", LETTER, "test_a_304_brings_its_own_freshness"),
    ("4.3.5", "SHOULD update by a HEAD's 200", BASE, "test_head_freshens_get"),
    ("4.3.5", "SHOULD take it for stale where the HEAD describes something else", BASE, "test_head_of_something_else"),
    ("4.4", "MUST invalidate the target of an unsafe or unknown method that didn't fail", LETTER,
     "test_invalidation_by_status"),
    ("4.4", "MUST NOT invalidate another origin's", LETTER, "test_invalidation_by_reference"),
    ("5.1", "SHOULD use the first of several ages, ignore an invalid one", BASE, "test_reuse"),
    ("5.2", "MUST pass directives through", BASE, "test_directives_are_passed_on"),
    ("5.2", "names without case, arguments in both forms", BASE, "test_reuse"),
    ("5.2.1.1", "max-age of a request", BASE, "test_request_directives"),
    ("5.2.1.2", "max-stale of a request", LETTER, "test_max_stale"),
    ("5.2.1.3", "min-fresh of a request", BASE, "test_request_directives"),
    ("5.2.1.4", "no-cache of a request", BASE, "test_request_directives"),
    ("5.2.1.5", "MUST NOT store an answer to a request's no-store", BASE, "test_a_requests_no_store"),
    ("5.2.1.7", "SHOULD answer only-if-cached by 504", BASE, "test_only_if_cached"),
    ("5.2.2.2", "MUST NOT reuse after must-revalidate's end; MUST answer an error when disconnected, SHOULD 504", BASE,
     "test_must_revalidate_when_disconnected"),
    ("5.2.2.3", "must-understand: MUST NOT store an unknown status, SHOULD ignore no-store", BASE,
     "test_must_understand_of_an_unknown_status"),
    ("5.2.2.4", "no-cache MUST NOT be used without successful validation", BASE, "test_reuse"),
    ("5.2.2.5", "no-store MUST NOT be stored", BASE, "test_reuse"),
    ("5.2.2.6", "MUST NOT transform", LETTER, "test_nothing_is_transformed"),
    ("5.2.2.7", "private MUST NOT be stored by a shared cache", BASE, "test_reuse"),
    ("5.2.2.8", "proxy-revalidate", FIELDS, "test_reuse"),
    ("5.2.2.10", "s-maxage overrides", BASE, "test_reuse"),
    ("5.2.3", "MUST ignore unknown directives", BASE, "test_reuse"),
    ("5.3", "MUST ignore Expires beside max-age or s-maxage", FIELDS, "test_reuse"),
    ("5.3", "MUST take an invalid date for the past", BASE, "test_reuse"),
    ("5.4", "Pragma counts only without Cache-Control", BASE, "test_request_directives"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("clause", "requirement", "file", "name"), REQUIREMENTS, ids=[f"{row[0]}-{row[1]}" for row in REQUIREMENTS]
)
def test_a_requirement_has_its_test(clause: str, requirement: str, file: str, name: str) -> None:
    text = (TESTS / file).read_text()
    assert re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE), f"{file} has no {name}"
    if name in ("test_reuse", "test_request_directives"):  # a table: its rows carry the clauses
        assert f'("9111#{clause}", ' in text, f"{file}: no row cites {clause}"
        return
    marks = re.findall(r'rfc\(\s*"([0-9]+#[0-9.]+)"', text.partition(f"def {name}(")[0].rpartition("\n\n\n")[2])
    assert f"9111#{clause}" in marks, f"{file}::{name} cites {marks}"

