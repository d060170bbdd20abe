"""What must go: forget requests, and the manifest that records one against its data.

Only numpy and the standard library are imported here, so requests can be read and checked where
no model is near.
"""

from erasus_pl.requests.base import ColumnRequest, ForgetRequest
from erasus_pl.requests.by_attribute import ForgetAttribute
from erasus_pl.requests.by_class import ForgetClass
from erasus_pl.requests.by_group import ForgetGroup
from erasus_pl.requests.errors import ForgetRequestError
from erasus_pl.requests.fingerprint import fingerprint
from erasus_pl.requests.indices import ForgetIndices
from erasus_pl.requests.manifest import Manifest, ManifestError, sha256_of_ids
from erasus_pl.requests.random_fraction import ForgetRandom
from erasus_pl.requests.time_window import ForgetTimeWindow

__all__ = [
    "ColumnRequest",
    "ForgetAttribute",
    "ForgetClass",
    "ForgetGroup",
    "ForgetIndices",
    "ForgetRandom",
    "ForgetRequest",
    "ForgetRequestError",
    "ForgetTimeWindow",
    "Manifest",
    "ManifestError",
    "fingerprint",
    "sha256_of_ids",
]
