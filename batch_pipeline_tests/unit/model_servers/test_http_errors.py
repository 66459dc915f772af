"""Errors of model servers, and of the proxies in front of them."""

import pytest

from batch_pipeline.errors import ServiceDownError
from batch_pipeline.model_servers.http_errors import error_for_status

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><style>@media (width < 9em) { a { color: red } }</style>
<title>
 400 The plain HTTP request was sent to HTTPS port </title></head>
<body><img src="logo.jpg"><p>This violates nothing.</p></body></html>"""


@pytest.mark.parametrize("page", [PAGE, PAGE.replace("<!DOCTYPE html>", ""), f"\n{PAGE.upper()}"])
def test_a_page_of_a_proxy_is_named_by_its_title_and_does_not_judge_a_picture(page):
    error = error_for_status("http://gpu1", 400, page, {})

    assert isinstance(error, ServiceDownError)
    assert error.kind == "model_refuses_all"
    assert (
        str(error)
        .lower()
        .endswith("answered 400: 400 the plain http request was sent to https port")
    )
