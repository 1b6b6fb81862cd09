"""For plugin authors: a toy encoder, toy images, and ``check_method``, the conformance suite.

    from benchbd.testing import check_method
    from my_defense import MyDefense

    def test_my_defense():
        check_method(MyDefense, steps=3)

It needs a CPU and no files. The method does its work two to four times on 48 images: options that shorten the work,
as above, reduce the time to seconds. Every method of benchbd passes it.
"""

from benchbd.testing.architecture import check_architecture
from benchbd.testing.contract import check_method
from benchbd.testing.watch import ContractError
from benchbd.toolkit.toys import (
    ToyPretraining,
    toy_attacker,
    toy_classifier,
    toy_defender,
    toy_encoder,
    toy_images,
    toy_probe,
)

__all__ = [
    "ContractError",
    "ToyPretraining",
    "check_architecture",
    "check_method",
    "toy_attacker",
    "toy_classifier",
    "toy_defender",
    "toy_encoder",
    "toy_images",
    "toy_probe",
]
