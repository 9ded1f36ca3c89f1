"""haproxy_limits: owns the gateway's token buckets, by address and by user, as a Lua script and its rules. Pure.

The gateway runs one thread, so the script's tables need no lock. A key that was not heard of for as long as its bucket
takes to fill is forgotten: it would be full. While there are too many, the keys that are new share one bucket.
"""

from __future__ import annotations

from dataclasses import dataclass

FILE = "limits.lua"
MOST_KEYS = 32768  # of each kind, in each of two generations; 100 bytes each


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """Token buckets: requests a second, and at once. A rate of 0 is no limit."""

    user_rate: float = 0.0
    user_burst: float = 1.0
    address_rate: float = 0.0
    address_burst: float = 1.0
    login_rate: float = 0.0
    login_burst: float = 1.0

    def kinds(self) -> tuple[tuple[str, float, float], ...]:
        """Return (kind, rate, burst) of each limit that is on."""
        every = (
            ("address", self.address_rate, self.address_burst),
            ("login", self.login_rate, self.login_burst),
            ("user", self.user_rate, self.user_burst),
        )
        return tuple(one for one in every if one[1] > 0)


_KEYS = {"address": "txn.sf:src()", "login": "txn.sf:src()", "user": "txn:get_var('txn.user')"}

_SCRIPT = """-- Written by loopd; changes are overwritten.
local function buckets(rate, burst)
    local fills = burst / rate + 1
    local young, old, count, began = {}, {}, 0, 0
    -- Takes a token and returns nil, or the seconds until there is one.
    return function(key)
        local at = core.now()
        local now = at.sec + at.usec / 1000000
        if now - began > fills or now < began then
            -- What is in neither table was not heard of for so long that it is full.
            old, young, count, began = young, {}, 0, now
        end
        local bucket = young[key]
        if not bucket then
            bucket = old[key]
            if not bucket and count >= MOST then
                key = "*"
                bucket = young[key]
            end
            if not bucket then
                bucket = {burst, now}
            end
            if not young[key] then
                young[key] = bucket
                count = count + 1
            end
        end
        local tokens = bucket[1]
        if now > bucket[2] then
            tokens = tokens + (now - bucket[2]) * rate
            if tokens > burst then
                tokens = burst
            end
        end
        bucket[2] = now
        if tokens >= 1 then
            bucket[1] = tokens - 1
            return nil
        end
        bucket[1] = tokens
        return math.max(1, math.ceil((1 - tokens) / rate))
    end
end
"""


def limits_script(limits: RateLimits) -> str:
    """Return the script: one action for each limit, which sets ``txn.wait`` when there is no token."""
    actions = [
        f"""
local take_{kind} = buckets({rate:.6f}, {burst:.6f})
core.register_action("limit_{kind}", {{"http-req"}}, function(txn)
    local wait = take_{kind}({_KEYS[kind]} or "?")
    if wait then
        txn:set_var("txn.wait", wait)
    end
end, 0)
"""
        for kind, rate, burst in limits.kinds()
    ]
    return _SCRIPT.replace("MOST", str(MOST_KEYS)) + "".join(actions)


def limit_rules(limits: RateLimits, kind: str, condition: str, refusal: str) -> str:
    """Return the rules that take a token where a condition holds, and refuse the request when there is none."""
    if kind not in {name for name, _, _ in limits.kinds()}:
        return ""
    return (
        f"    http-request lua.limit_{kind} if {condition}\n"
        f"    http-request return status 429 {refusal} hdr Retry-After %[var(txn.wait)] "
        "if { var(txn.wait) -m found }\n"
    )
