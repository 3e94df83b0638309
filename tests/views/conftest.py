"""Texts that try to be more than text, for every view to draw as text."""

import pytest

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "<!--<script>",
    "--><svg onload=alert(1)>",
    '"onmouseover="alert(1)',
    "'><iframe srcdoc='<script>alert(1)</script>'>",
    "&lt;img src=x onerror=alert(1)&gt;",
    "\u2028\u2029</style>",
    "]]><!CDATA[",
    "${alert(1)}{{7*7}}{% raw %}",
    "javascript:alert(1)",
    "\x00\x08\x1b[31m",
    "\u202etxt.exe\u2066",
    "\ud800 lone surrogate",
    "$\\frac{$",
]


@pytest.fixture(scope="session")
def hostile() -> list[str]:
    return HOSTILE


@pytest.fixture(params=HOSTILE)
def hostile_text(request: pytest.FixtureRequest) -> str:
    return request.param
