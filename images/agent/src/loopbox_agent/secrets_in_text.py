"""secrets_in_text: owns what a credential looks like. Pure.

Two ways to know one: by its form (detect-secrets' patterns and some newer ones), or by the name it is assigned to.
A value that is only random-looking is left alone, because digests, identifiers and commit names look the same.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from detect_secrets.plugins.artifactory import ArtifactoryDetector
from detect_secrets.plugins.aws import AWSKeyDetector
from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
from detect_secrets.plugins.discord import DiscordBotTokenDetector
from detect_secrets.plugins.github_token import GitHubTokenDetector
from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
from detect_secrets.plugins.mailchimp import MailchimpDetector
from detect_secrets.plugins.pypi_token import PypiTokenDetector
from detect_secrets.plugins.sendgrid import SendGridDetector
from detect_secrets.plugins.slack import SlackDetector
from detect_secrets.plugins.square_oauth import SquareOAuthDetector
from detect_secrets.plugins.stripe import StripeDetector
from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
from detect_secrets.plugins.twilio import TwilioKeyDetector

from loopbox_agent.mask_span import Span

#: What names a password or key. Whatever stands behind one of these is a secret.
STRONG_NAMES = (
    r"passw(?:or)?d|passphrase|passwort|kennwort|pwd|client[_-]?secret|secret[_-]?(?:access[_-]?)?key|api[_-]?key|apikey"
    r"|access[_-]?key|private[_-]?key|encryption[_-]?key|signing[_-]?key|auth[_-]?key|account[_-]?key"
)
#: What names one sometimes; the value must look like one, too: "token" also means a piece of a word.
WEAK_NAMES = r"secret|token|credentials?|authorization|cookie|session[_-]?id"
_JOINT = r"""[\\"'`\])]{0,3}[ \t]{0,2}(?:=>|:=|==?|:|\bis\b)[ \t]{0,2}"""
_VALUE = r"""(?:\\?(?P<quote>["'`])(?P<quoted>[^"'`\n]{1,4096})|(?P<bare>[^\s"'`,;&<>]{1,4096}))"""
_ASSIGNED = re.compile(
    rf"(?:--(?:{STRONG_NAMES}|{WEAK_NAMES})[ \t=]|(?:(?P<strong>{STRONG_NAMES})|(?<!\[)(?P<weak>{WEAK_NAMES}))"
    rf"(?P<joint>{_JOINT})){_VALUE}",
    re.IGNORECASE,
)
_BEARER = re.compile(
    r"\b(?:bearer|authorization[\"']?[:=] ?[\"']?basic)[ \t]([A-Za-z0-9._~+/=-]{12,4096})", re.IGNORECASE
)
_USER_INFO = re.compile(r"://[^\s:/@\"']{0,128}:([^\s:/@\"']{1,256})@")
# eyJ is the start of {" in base64; two such parts are a token whether or not the rest came along.
_JWT = re.compile(
    r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_=-]{8,4096}\.eyJ[A-Za-z0-9_=-]{4,4096}(?:\.[A-Za-z0-9_=+/-]{0,4096}){0,3}"
)

#: What stands where a secret would in examples, schemas and templates.
_PLACEHOLDER = re.compile(
    r"(?:(?P<c>[x*.•_-])(?P=c){2,}|string|str|bytes|none|null|nil|true|false|undefined|required|optional|passw(?:or)?d"
    r"|secret|token|redacted|masked|hidden|example|changeme|change[_-]me|todo|(?:your|my|the|some|an?)[_ -].{0,60}"
    r"|[<$%{\[(].{0,4096}|(?:secret|pii):[a-z_]+\]?)[.,;:!?)}\]>]*",
    re.IGNORECASE,
)
# Names of variables, attributes and functions: settings.token, os.environ["TOKEN"], get_token(), TOKEN_2.
_CODE = re.compile(r"[A-Za-z_][\w.]*[\[({].*|[A-Z][A-Z0-9_]{0,30}|[a-z_]+(?:\.[a-z_0-9]+)+|@?[A-Za-z_]+")
_LEAST_ENTROPY = 2.8  # bits a character; English words of 16 letters have less once letters repeat

# Not the library's patterns for npm and OpenAI: on long input they take time that grows with its square.
_BY_FORM: tuple[tuple[str, re.Pattern[str]], ...] = (
    *(
        (kind, pattern)
        for kind, plugin in (
            ("aws_access_key", AWSKeyDetector()),
            ("azure_storage_key", AzureStorageKeyDetector()),
            ("artifactory_token", ArtifactoryDetector()),
            ("discord_token", DiscordBotTokenDetector()),
            ("github_token", GitHubTokenDetector()),
            ("gitlab_token", GitLabTokenDetector()),
            ("mailchimp_key", MailchimpDetector()),
            ("pypi_token", PypiTokenDetector()),
            ("sendgrid_key", SendGridDetector()),
            ("slack_token", SlackDetector()),
            ("square_secret", SquareOAuthDetector()),
            ("stripe_key", StripeDetector()),
            ("telegram_token", TelegramBotTokenDetector()),
            ("twilio_key", TwilioKeyDetector()),
        )
        for pattern in plugin.denylist
    ),
    ("openai_key", re.compile(r"\bsk-(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{32,256}")),
    ("anthropic_key", re.compile(r"\bsk-ant-[A-Za-z0-9_-]{20,256}")),
    ("github_token", re.compile(r"\bgithub_pat_[A-Za-z0-9_]{22,255}")),
    ("google_key", re.compile(r"\bAIza[A-Za-z0-9_-]{35}")),
    ("google_token", re.compile(r"\bya29\.[A-Za-z0-9_-]{20,1024}")),
    ("huggingface_token", re.compile(r"\bhf_[A-Za-z0-9]{30,64}\b")),
    ("npm_token", re.compile(r"\bnpm_[A-Za-z0-9]{36}\b|(?<=:_authToken=)[^\s\"']{8,256}")),
    ("slack_token", re.compile(r"\bxapp-\d-[A-Z0-9]+-\d+-[a-f0-9]{16,128}")),
    ("stripe_key", re.compile(r"\b(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,128}|\bwhsec_[A-Za-z0-9]{24,64}")),
    ("digitalocean_token", re.compile(r"\bdo[opr]_v1_[a-f0-9]{64}")),
    ("age_key", re.compile(r"\bAGE-SECRET-KEY-1[A-Z0-9]{50,70}")),
    ("vault_token", re.compile(r"\bhv[sbr]\.[A-Za-z0-9_-]{24,256}")),
)
# One look that tells whether any pattern by form can match: their fixed parts.
_FORM_PARTS = (
    r"akia|asia|abia|acca|a3t|aws|accountkey=|akc|ap[0-9a-f]|gh[pousr]_|gl[a-z]{2,5}-|gr1348941|-us\d|_authtoken|sk-"
    r"|pypi-ag|sg\.|xox|xapp-|hooks\.slack|sq0csp|[rs]k_|whsec_|\d{8}:|(?:ac|sk)[a-z0-9]{32}|github_pat_|aiza|ya29\.|hf_"
    r"|npm_|do[opr]_v1_|age-secret|hv[sbr]\.|[mno][a-z\d_-]{23,25}\."
)
_ANY_FORM = re.compile(_FORM_PARTS, re.IGNORECASE)
_ANY_NAME = re.compile(rf"{STRONG_NAMES}|{WEAK_NAMES}|bearer", re.IGNORECASE)
#: A segment in which this finds nothing holds no secret and no personal data, which is true of most.
LOOKS_SECRET = re.compile(
    rf"[0-9@]|-----BEGIN|PuTTY|://|eyJ|bearer|{STRONG_NAMES}|{WEAK_NAMES}|{_FORM_PARTS}", re.IGNORECASE
)


def find_secrets(text: str, known: Iterable[str] = ()) -> Iterator[Span]:
    """Yield the credentials in one segment of text. known: values that are secret here, whatever they look like."""
    for value in known:
        yield from (Span(found.start(), found.end(), "secret:known") for found in re.finditer(re.escape(value), text))
    if _ANY_FORM.search(text):
        for kind, pattern in _BY_FORM:
            for found in pattern.finditer(text):
                if _is_whole(kind, found, text):
                    yield Span(found.start(), found.end(), f"secret:{kind}")
    yield from _structured(text)
    if _ANY_NAME.search(text):
        yield from _assigned(text)


def _structured(text: str) -> Iterator[Span]:
    if "eyJ" in text:
        yield from (Span(found.start(), found.end(), "secret:jwt") for found in _JWT.finditer(text))
    if "://" in text and "@" in text:
        for found in _USER_INFO.finditer(text):
            if not _PLACEHOLDER.fullmatch(found[1]):
                yield Span(found.start(1), found.end(1), "secret:url_password")


def _is_whole(kind: str, found: re.Match[str], text: str) -> bool:
    """Tell a credential from a piece of something longer, where the library's pattern has no bounds of its own."""
    if kind == "artifactory_token":  # its pattern fits words in capitals, too
        return any(char.isdigit() for char in found[0])
    if kind in {"telegram_token", "twilio_key", "mailchimp_key", "aws_access_key"}:
        before, after = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
        return not (before.isalnum() or after.isalnum())
    return True


def _assigned(text: str) -> Iterator[Span]:
    for found in _ASSIGNED.finditer(text):
        group = "quoted" if found["quoted"] else "bare"
        value = found[group]
        if group == "bare":
            value = value.rstrip(").]}:\\")
        # PASSWORD=swordfish is a line of an environment; password=swordfish is more often a variable's name.
        from_environment = found["joint"] == "=" and (found["strong"] or found["weak"]).isupper()
        if is_secret_value(value, strong=found["weak"] is None, quoted=group == "quoted" or from_environment):
            yield Span(found.start(group), found.start(group) + len(value), "secret:assigned")
    for found in _BEARER.finditer(text):
        if is_secret_value(found[1], strong=False, quoted=False):
            yield Span(found.start(1), found.end(1), "secret:bearer")


def is_secret_value(value: str, *, strong: bool, quoted: bool) -> bool:
    """Tell whether a value that stands behind a name of secrets is one.

    strong: the name always means a secret. quoted: in quotes, so it is no name of a variable.
    """
    if len(value) < (4 if strong and quoted else 6) or _PLACEHOLDER.fullmatch(value):
        return False
    if not quoted and _CODE.fullmatch(value):
        return False
    if strong:
        return True
    mixed = any(char.isdigit() for char in value) and any(char.isalpha() for char in value)
    return (mixed and len(value) >= 8) or (len(value) >= 20 and " " not in value and _entropy(value) >= _LEAST_ENTROPY)  # noqa: PLR2004 — lengths of a word


def _entropy(value: str) -> float:
    total = len(value)
    return -sum(n / total * math.log2(n / total) for n in Counter(value).values())
