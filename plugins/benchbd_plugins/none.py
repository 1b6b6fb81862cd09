"""none: the attack that changes nothing and the defense that does nothing. Their cells are the floor of every table."""

from __future__ import annotations

from benchbd import Attack, AttackerKnowledge, Backdoor, DefenderKnowledge, Encoder, Mitigation, Role, hookimpl


class NoAttack(Attack):
    """Publishes the clean encoder; the triggers are still evaluated. Undefended, its ACC and ASR are CA and ASR-B."""

    name = "none"
    paper = "control; CA and ASR-B of BadEncoder (Jia et al., IEEE S&P 2022)"
    version = "1"
    role = Role.FLOOR
    passthrough = True

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        return Backdoor(knowledge.encoder, tuple(target.trigger for target in knowledge.targets))

    def forwards(self, images: int) -> int:
        return 0


class NoDefense(Mitigation):
    """Returns the encoder unchanged."""

    name = "none"
    paper = "control"
    version = "1"
    role = Role.FLOOR
    passthrough = True

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        return encoder

    def forwards(self, images: int) -> int:
        return 0


@hookimpl
def benchbd_attacks() -> list[type[Attack]]:
    return [NoAttack]


@hookimpl
def benchbd_defenses() -> list[type[Mitigation]]:
    return [NoDefense]
