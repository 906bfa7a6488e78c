"""What is shown while experts are loaded."""

from deploy.loading import describe_loading


def test_loading_is_shown_over_all_hosts() -> None:
    hosts = [
        {"experts": [0, 1], "loaded_bytes": 2**30, "wanted_bytes": 2**31},
        {"experts": [1, 2], "loaded_bytes": 0, "wanted_bytes": 2**30},
    ]

    assert describe_loading(hosts) == "2 hosts, 3 experts, 1.00 of 3.00 GiB"
