"""The page of a study."""


def write_page(*args):
    return "", ""
