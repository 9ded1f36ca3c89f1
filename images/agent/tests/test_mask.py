"""What is masked, what is left, and that a stream shows what the whole would."""

from __future__ import annotations

import random
import time
from base64 import urlsafe_b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopbox_agent.mask import LONGEST_KEY, MaskRules, StreamMask, mask, mask_json, mask_processor
from loopbox_agent.mask_cut import HARD

# Written in halves, so that scanners of this repository do not take the samples for leaks.
_A = "AKIA" + "IOSFODNN7EXAMPLE"
_JWT = ".".join(
    urlsafe_b64encode(part).decode().rstrip("=")
    for part in (b'{"alg":"RS256","typ":"JWT"}', b'{"sub":"ada","role":"admin","exp":1999999999}', bytes(range(48)))
)
_KEY_BODY = "\n".join("MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"[i % 9 :] for i in range(12))
PRIVATE_KEY = "-----BEGIN " + "PRIVATE KEY-----\n" + _KEY_BODY + "\n-----END " + "PRIVATE KEY-----"

#: text, the part that must be gone, the kind.
SECRETS: tuple[tuple[str, str, str], ...] = (
    (f"the id is {_A} there", _A, "secret:aws_access_key"),
    ("aws_secret_access_key = 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY'", "wJalrXUtnFEMI", "secret:"),
    ("push with ghp_" + "a1B2" * 9, "a1B2a1B2", "secret:github_token"),
    ("github_pat_" + "11ABCDEFG0" * 4, "11ABCDEFG0", "secret:github_token"),
    ("glpat-" + "Zx9_" * 6, "Zx9_Zx9_", "secret:gitlab_token"),
    ("xoxb-" + "123456789012-abcdefghij", "123456789012", "secret:slack_token"),
    ("https://hooks.slack.com/services/T0AAA/B0BBB/" + "c0ffee" * 4, "c0ffee", "secret:slack_token"),
    ("sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc", "4eC39HqL", "secret:stripe_key"),
    ("sk-proj-" + "Ab3_" * 12, "Ab3_Ab3_", "secret:openai_key"),
    ("sk-ant-" + "api03-Qw8_" * 4, "Qw8_", "secret:"),
    ("AIza" + "SyD-9tSrke72PouQMnMX-a7eZSW0jkFMB" + "Wy", "SyD-9tSrke72", "secret:google_key"),
    ("hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeF", "aBcDeFgHiJ", "secret:huggingface_token"),
    ("//registry.example/:_authToken=" + "npm_" + "x9Y8" * 9, "x9Y8x9Y8", "secret:npm_token"),
    ("SG." + "a" * 22 + "." + "b" * 43, "bbbbbbbb", "secret:sendgrid_key"),
    ("bot 123456789:" + "AAHk7_" * 5 + "AAAAA", "AAHk7_AAHk7_", "secret:telegram_token"),
    ("AccountKey=" + "Eby8" * 21 + "Eb==", "Eby8Eby8", "secret:"),
    ("AGE-SECRET-KEY-1" + "QPZRY9X8GF" * 5 + "QPZRY9X8", "QPZRY9X8", "secret:age_key"),
    (f"Cookie and {_JWT} here", _JWT[-24:], "secret:jwt"),
    (f"Authorization: Bearer {_JWT}", _JWT[-24:], "secret:"),
    ("Authorization: Basic dXNlcjpwYXNzd29yZDEyMw==", "dXNlcjpwYXNz", "secret:bearer"),
    ("curl -H 'Authorization: Bearer 0a1b2c3d4e5f6a7b8c9d'", "0a1b2c3d", "secret:"),
    ("postgresql://agent:" + "s3cr3t-pw@db:5432/agent", "s3cr3t-pw", "secret:url_password"),
    ("password = hunter2!!", "hunter2!!", "secret:assigned"),
    ("the password is hunter22.", "hunter22", "secret:assigned"),
    ("password: 'correct horse battery'", "correct horse battery", "secret:assigned"),
    ('{"user": "ada", "password": "tr0ub4dor&3"}', "tr0ub4dor", "secret:assigned"),
    ('{"password":"hunter2"}', "hunter2", "secret:assigned"),
    ("PASSWORD=swordfish", "swordfish", "secret:assigned"),
    ("mysql --password hunter2zz -u root", "hunter2zz", "secret:assigned"),
    ("api_key: 9f86d081884c7d659a2feaa0c55ad015", "9f86d081", "secret:assigned"),
    ('client_secret="Zm9v-YmFy-MTIz"', "Zm9v-YmFy", "secret:assigned"),
    ("X-Api-Key: 1234-abcd-5678-efgh", "1234-abcd", "secret:assigned"),
    ("token=6f1ed002ab5595859014ebf0951522d9", "6f1ed002", "secret:assigned"),
    (f"before\n{PRIVATE_KEY}\nafter", "MIIEvQIB", "secret:private_key"),
    ("key: " + PRIVATE_KEY.replace("\n", "\\n") + " after", "MIIEvQIB", "secret:private_key"),
    (PRIVATE_KEY.replace("\n", " ") + " after", "MIIEvQIB", "secret:private_key"),
    ("-----BEGIN OPENSSH " + "PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n", "b3BlbnNz", "secret:private_key"),
)
PERSONAL: tuple[tuple[str, str, str], ...] = (
    ("write to jane.doe+x@mail.example.com.", "jane.doe", "pii:email"),
    ("<ada@example.org>", "ada@", "pii:email"),
    ("call +49 170 1234567 today", "1234567", "pii:phone"),
    ("call +1 (212) 867-5309", "867-5309", "pii:phone"),
    ("(212) 867-5309", "867-5309", "pii:phone"),
    ("tel:+442079460958", "2079460958", "pii:phone"),
    ("card 4111 1111 1111 1111, please", "1111 1111", "pii:credit_card"),
    ("card 5500-0000-0000-0004", "0000-0004", "pii:credit_card"),
    ("378282246310005", "378282", "pii:credit_card"),
    ("IBAN DE89 3704 0044 0532 0130 00 at the bank", "0532 0130", "pii:iban"),
    ("GB82WEST12345698765432", "WEST1234", "pii:iban"),
    ("SSN 536-90-4399", "536-90-4399", "pii:us_ssn"),
    ("DNI 54362315K", "54362315K", "pii:es_id"),
    ("CF RCCMNL83S18D969H", "RCCMNL83S18D969H", "pii:it_tax_id"),
    ("CPF 390.533.447-05", "390.533.447-05", "pii:br_tax_id"),
    ("AHV 756.9217.0769.85", "756.9217.0769.85", "pii:ch_ahv"),
    ("Steuer-ID 36 574 261 809", "36 574 261 809", "pii:de_tax_id"),
    ("2 95 10 99 126 111 93", "126 111", "pii:fr_id"),
)
#: What must stay as it is.
LOOK_ALIKES: tuple[str, ...] = (
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  empty.txt",
    "commit 355c6cf0f1e2d3c4b5a697886950413223140506",
    "da39a3ee5e6b4b0d3255bfef95601890afd80709 d41d8cd98f00b204e9800998ecf8427e",
    "run_0123456789abcdef thread_fedcba9876543210 call_abc123def456",
    "id 7b9f2c1e-3f4a-4c5d-8e6f-1a2b3c4d5e6f",
    "git clone git@github.com:owner/name.git",
    "npm install @scope/package@1.2.3 left-pad@1.3.0",
    "src/icon@2x.png",
    "@app.get('/health') @pytest.mark.parametrize",
    "2026-11-21T11:30:03.123456Z 1700000000 1700000000000 1700000000000000000",
    "192.168.1.20 10.0.0.1:8080 172.17.0.1",
    "3.14159265358979 2.718281828459045 6.02e23 0.1234567890123456",
    "4111 1111 1111 1112 is no card, nor is 1234567890123456",
    "order 12-345-678, part 555-1234, room 101",
    "lines 120-150, pages 100-200 and 300-400",
    "DE00 1234 is no account",
    "token: str | None = None",
    "password: str = Field(min_length=8)",
    "password = getpass.getpass()",
    "token = tokens[index]",
    "api_key=settings.api_key, password=password",
    "api_key=os.environ['API_KEY']",
    'api_key = "<your key>"',
    "password: ${DB_PASSWORD}",
    "password: ********",
    '{"token": "the", "logprob": -0.1}',
    '{"max_tokens": 4096, "total_tokens": 123456}',
    "the token is expired and the password is wrong",
    "reset the password, then sign in",
    "a secret is a thing that one knows",
    '{"type": "string", "password": "string"}',
    "cookie: accepted",
    "eyJ is how such a token starts",
    "APACHELICENSE ACCESSDENIED SKYSCRAPER",
    "https://user@host/path http://localhost:8080/a:b@c",
    "def f(a, b): return a[0] @ b[1:]",
    "123 456 789 1011 1213 1415 1617 1819 2021 2223 2425",
    "-rw-r--r-- 1 root root 18374293 Nov 21 04:46 npm.tsv",
    "0x7ffee4b2c8d0 0xdeadbeef 0b101010",
    "aaaaaaaa bbbbbbbb cccccccc AAAA BBBB",
    "-----BEGIN CERTIFICATE-----\nMIIDdzCCAl+gAwIBAgIEAgAAuTANBg\n-----END CERTIFICATE-----",
    "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A\n-----END PUBLIC KEY-----",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ root-at-host",
    "[secret:jwt] and [pii:email] were masked before",
    "Der Schlüssel liegt unter der Matte. 我喜欢机器学习。Пароль неверный.",
)


@pytest.mark.parametrize(("text", "gone", "kind"), [*SECRETS, *PERSONAL])
def test_what_is_secret_or_personal_is_replaced_by_its_kind(text: str, gone: str, kind: str) -> None:
    masked = mask(text)
    assert gone not in masked.text
    assert any(one.startswith(kind) for one in masked.found)
    assert f"[{kind}" in masked.text


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert mask(text).text == text


@pytest.mark.parametrize(("text", "gone", "kind"), [*SECRETS, *PERSONAL])
def test_nothing_leaks_however_a_stream_is_cut_in_two(text: str, gone: str, kind: str) -> None:
    """Guards against a secret that begins in one piece and ends in the next."""
    whole = mask(text).text
    for at in range(len(text) + 1):
        stream = StreamMask()
        shown = stream.feed(text[:at])
        assert whole.startswith(shown)  # what has been sent can't be taken back
        assert shown + stream.feed(text[at:]) + stream.flush() == whole


FRAGMENTS = st.one_of(
    st.sampled_from([text for text, _, _ in (*SECRETS, *PERSONAL)]),
    st.sampled_from(LOOK_ALIKES),
    st.sampled_from(
        ["password", "token", " is ", ": ", "=", '"', "'", "\\n", "\n", " ", "\t", "Bearer ", "+49 ", "4111 "]
    ),
    st.sampled_from(
        ["-----", "-----BEGIN ", "PRIVATE KEY-----", "-----END ", "eyJ", "@", "://", "PuTTY-User-Key-File-2:"]
    ),
    st.sampled_from(["\r\n", "é", "\u200b", "密", ",", "{", "x" * 300]),
    st.text(max_size=12),
    st.text(alphabet="0123456789 -+()/.", max_size=30),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAGMENTS, max_size=8), st.randoms(use_true_random=False))
def test_a_stream_shows_what_the_whole_would(fragments: list[str], choose: random.Random) -> None:
    text = "".join(fragments)
    masked = mask(text)
    stream = StreamMask()
    shown, at = "", 0
    while at < len(text):
        size = choose.choice((1, 2, 5, 17, 400))
        shown += stream.feed(text[at : at + size])
        at += size
        assert masked.text.startswith(shown)
        assert stream.held <= HARD + 400
    shown += stream.flush()
    assert (shown, tuple(stream.found)) == (masked.text, masked.found)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(st.sampled_from([text for text, _, _ in SECRETS]), st.text(alphabet=" \nab1.,", max_size=20)),
        max_size=5,
    )
)
def test_what_was_masked_stays_as_it_is(fragments: list[str]) -> None:
    once = mask("\n".join(fragments)).text
    assert mask(once).text == once


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="0123456789@"), max_size=200))
def test_prose_without_names_of_secrets_stays(text: str) -> None:
    if not any(
        word in text.lower()
        for word in ("pass", "pwd", "key", "secret", "token", "cred", "auth", "cookie", "session", "wort", "bear")
    ):
        assert mask(text).text == text


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "passwd",
        "pwd",
        "passphrase",
        "passwort",
        "kennwort",
        "apikey",
        "authorization",
        "secret",
        "token",
        "cookie",
    ],
)
def test_no_name_of_secrets_is_taken_for_a_plain_word(name: str) -> None:
    """Guards the list of word ends that the quick way leaves out."""
    assert mask(f"so {name} = a1b2c3d4e5f6").text == f"so {name} = [secret:assigned]"
    assert mask(f"so {name.title()}: a1b2c3d4e5f6").text == f"so {name.title()}: [secret:assigned]"


def test_ordinary_text_is_held_back_by_one_word() -> None:
    stream = StreamMask()
    for piece in ("The ", "quick ", "brown ", "fox ", "jumps "):
        assert stream.feed(piece) == piece
    assert stream.feed("over th") == "over "
    assert stream.held == len("th")


def test_a_key_in_a_stream_shows_no_line_of_itself() -> None:
    stream = StreamMask()
    shown = "".join(stream.feed(char) for char in f"a\n{PRIVATE_KEY}\nb ") + stream.flush()
    assert shown == "a\n[secret:private_key]\nb "


def test_a_key_that_never_ends_does_not_swallow_the_rest_of_the_answer() -> None:
    head = "-----BEGIN RSA " + "PRIVATE KEY-----\n"
    assert mask(head + "\nBut this is prose, and it stays.").text.endswith("But this is prose, and it stays.")
    assert len(mask(head + ("A" * 64 + "\n") * 600).text) < 600 * 65 - LONGEST_KEY + 200


def test_known_values_are_masked_whatever_they_look_like() -> None:
    rules = MaskRules(known=("plainword",))
    assert mask("it is plainword.", rules).text == "it is [secret:known]."


def test_rules_choose_what_is_masked() -> None:
    assert mask("ada@example.org", MaskRules(pii=False)).text == "ada@example.org"
    assert mask("on 93.184.216.34 now", MaskRules(addresses=True)).text == "on [pii:ip_address] now"


def test_json_is_masked_by_name_and_by_form() -> None:
    value = {"password": "x", "note": "ada@example.org", "n": 3, "list": [{"api_key": "abc"}, None], "token": {"a": 1}}
    assert mask_json(value) == {
        "password": "[secret:assigned]",
        "note": "[pii:email]",
        "n": 3,
        "list": [{"api_key": "[secret:assigned]"}, None],
        "token": {"a": 1},
    }


def test_json_that_is_too_deep_or_too_much_is_not_stored_unread() -> None:
    deep: object = "ada@example.org"
    for _ in range(100):
        deep = [deep]
    assert "[unread]" in str(mask_json(deep))
    assert "ada" not in str(mask_json(deep))
    assert mask_json(["x"] * 30_000)[-1] == "[unread]"


def test_log_lines_are_masked_but_for_the_loggers_own_fields() -> None:
    event = {
        "event": "mail to ada@example.org",
        "password": "x",
        "timestamp": "2026-11-21",
        "correlation_id": "536-90-4399",
    }
    assert mask_processor(None, "info", event) == {
        "event": "mail to [pii:email]",
        "password": "[secret:assigned]",
        "timestamp": "2026-11-21",
        "correlation_id": "536-90-4399",
    }


HOSTILE = {
    "one word": "a" * 200_000,
    "digits": "1 " * 100_000,
    "bare digits": "1" * 200_000,
    "names": "password" * 25_000,
    "names and joints": "token=" * 33_000,
    "quotes": "password='" * 20_000,
    "jwt starts": "eyJ-" * 50_000,
    "jwt": "eyJ" + "a" * 4000 + ".eyJ",
    "sk": "sk-" * 66_000,
    "ats": "a@" * 100_000,
    "domains": "a@" + "a." * 100_000,
    "urls": "://a:" * 40_000,
    "slashes": "//" * 100_000,
    "headers": "-----BEGIN " * 18_000,
    "key headers": ("-----BEGIN " + "PRIVATE KEY-----\n") * 6_000,
    "brackets": "([{" * 66_000,
    "capitals": "DE89" * 50_000,
    "xox": "xoxb-" + "1-" * 100_000,
    "slack": "hooks.slack.com" * 13_000,
    "spaces": " " * 200_000,
    "not ascii": "é" * 200_000,
    "tabs": "password:\t" * 20_000,
    "is": "password is " * 16_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_time_grows_with_the_size_alone(name: str) -> None:
    """Guards against a pattern whose time grows with the square of the input: 200,000 characters take a second then."""
    text = HOSTILE[name]
    began = time.process_time()
    mask(text)
    assert time.process_time() - began < 3.0
