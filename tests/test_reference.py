"""What users type: each documented form, and everything else refused by code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.reference import (
    HubRef,
    MockRef,
    NameRef,
    Reference,
    RootRef,
    check_model_name,
    looks_like_cid,
    parse_reference,
)
from ipfs_accelerate_node.errors import BadRequest

V0 = "QmbWqxBEKC3P8tqsKc98xmWNzrzDtRLMiMPL8wBuTGsMnR"
V1 = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
ROOT, ROOT0 = Cid.parse(V1), Cid.parse(V0)

GOOD: dict[str, Reference] = {
    V1: RootRef(ROOT),
    V0: RootRef(ROOT0),
    V1.upper(): RootRef(ROOT),
    "bafkqaaa": RootRef(Cid.parse("bafkqaaa")),
    f"ipfs://{V1}": RootRef(ROOT),
    f"ipfs://{V1}/": RootRef(ROOT),
    f"ipfs://{V1}/1_Pooling/config.json": RootRef(ROOT, "1_Pooling/config.json"),
    f"ipfs://{V0}/a%20b": RootRef(ROOT0, "a b"),
    f"/ipfs/{V1}": RootRef(ROOT),
    f"/ipfs/{V1}/a%20b": RootRef(ROOT, "a%20b"),
    f"/ipfs/{V1}/x/": RootRef(ROOT, "x"),
    "hf:sentence-transformers/all-MiniLM-L6-v2": HubRef("sentence-transformers/all-MiniLM-L6-v2"),
    "hf:org/name@refs/pr/1": HubRef("org/name", "refs/pr/1"),
    "hf:gpt2": HubRef("gpt2"),
    "org/name": HubRef("org/name"),
    "hf:datasets/org/rows@v1": HubRef("org/rows", "v1", "dataset"),
    "hf:datasets/squad": HubRef("squad", kind="dataset"),
    "hf://datasets/org/rows": HubRef("org/rows", kind="dataset"),
    "datasets/org/rows": HubRef("org/rows", kind="dataset"),
    "org/name@0123abc": HubRef("org/name", "0123abc"),
    "my-model": NameRef("my-model"),
    "minilm_v2.1": NameRef("minilm_v2.1"),
    "baffle": NameRef("baffle"),
    "Qmodel": NameRef("Qmodel"),
    "None": NameRef("None"),
    "mock:embedding": MockRef("embedding"),
}
BAD: dict[str, str] = {
    "": "invalid_cid",
    "   ": "invalid_cid",
    V1 + "\n": "invalid_cid",
    V1 + "\0": "invalid_cid",
    " " + V1: "invalid_cid",
    V1 + "?x=1": "invalid_cid",
    V1[:-3]: "invalid_cid",
    V0[:-1]: "invalid_cid",
    V0 + "a": "invalid_cid",
    "QmO" + V0[3:]: "invalid_cid",
    "bаfy" + V1[4:]: "invalid_cid",
    V1 + "/config.json": "invalid_cid",
    "x" * 5000: "invalid_cid",
    "bafksebhh7d53e": "hash_not_allowed",
    "bafkreez3itiri7ghbbf6lzej7paxyxy2qznpw": "digest_too_small",
    "k51qzi5uqu5dgutdk6i1ynyzgkqngpha5xpgia3a5qqp4jsh0u4csozksxel2r": "unsupported_codec",
    "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA": "unsupported_codec",
    "ipfs://": "invalid_cid",
    "ipfs://name": "invalid_cid",
    "/ipfs/": "invalid_cid",
    f"/ipfs/{V1}/../x": "invalid_path",
    f"/ipfs/{V1}//x": "invalid_path",
    f"ipfs://{V1}/%2e%2e/x": "invalid_path",
    f"ipfs://{V1}/a%2f..%2fb": "invalid_path",
    f"ipfs://{V1}/a%00": "invalid_path",
    f"ipfs://{V1}/a%ff": "invalid_path",
    f"ipfs://{V1}/a?download=1": "invalid_path",
    f"ipfs://{V1}#x": "invalid_path",
    "../../etc/passwd": "invalid_path",
    "/etc/passwd": "invalid_reference",
    "-rf": "invalid_reference",
    "--token": "invalid_reference",
    "a/b/c": "invalid_reference",
    "a//b": "invalid_reference",
    "hf:../x": "invalid_reference",
    "hf:": "invalid_reference",
    "hf:datasets/": "invalid_reference",
    "hf:datasets/../x": "invalid_reference",
    "hf:datasets/org/rows/data.csv": "invalid_reference",
    "hf:spaces/org/name": "invalid_reference",
    "hf:org/na--me": "invalid_reference",
    "hf:org/name@": "invalid_reference",
    "hf:org/name@../x": "invalid_reference",
    "hf:org/name@-x": "invalid_reference",
    "hf:org/" + "n" * 300: "invalid_reference",
    "hf:org/näme": "invalid_reference",
    "mock:": "invalid_reference",
    "mock:../x": "invalid_reference",
    "two words": "invalid_reference",
    "a..b": "invalid_reference",
    "name@rev": "invalid_reference",
    "https://example.org/model": "invalid_reference",
    "name\x1b[31m": "invalid_reference",
}


@pytest.mark.parametrize(("text", "meant"), GOOD.items(), ids=ascii)
def test_documented_forms(text: str, meant: Reference) -> None:
    assert parse_reference(text) == meant


@pytest.mark.parametrize(("text", "code"), BAD.items(), ids=lambda value: ascii(value[:40]))
def test_everything_else_is_refused(text: str, code: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_reference(text)
    assert caught.value.code == code
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("wrong", [None, 7, b"bafkqaaa"])
def test_other_types_are_refused(wrong: object) -> None:
    with pytest.raises(BadRequest):
        parse_reference(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("reference", GOOD.values(), ids=str)
def test_a_reference_prints_as_what_parses_to_it(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize("name", ["minilm", "org/name", "a", "A.b_c-d"])
def test_names_that_may_be_given(name: str) -> None:
    check_model_name(name)


@pytest.mark.parametrize("name", ["", V1, V0, "bafkqaaa", V1[:-3], "a/b/c", "../a", "-a", "mock:x", "a b", "a\n", "ä"])
def test_names_that_may_not(name: str) -> None:
    with pytest.raises(BadRequest):
        check_model_name(name)


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_a_bad_request(text: str) -> None:
    try:
        meant = parse_reference(text)
    except BadRequest:
        return
    assert isinstance(meant, NameRef) <= (not looks_like_cid(text))
    assert parse_reference(str(meant)) == meant
