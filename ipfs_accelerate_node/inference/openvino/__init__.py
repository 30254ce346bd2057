"""Models as OpenVINO graphs: converted once in a process of its own, kept as artefacts, run without torch.

``artefact`` says what lies on disk; ``artefacts`` makes, finds and removes it, by way of ``conversion``, the converting
process as the daemon sees it; ``convert`` (with ``plans``, ``export``, ``cached``, ``stateful``, ``int8``) is what runs
in that process; ``engine`` and ``decoder`` are what a worker runs. Only the converting process imports torch.

A graph file of somebody else is never read: OpenVINO's reader follows what an .xml names. A model directory that has
nothing else is refused where its weights are looked for, and an artefact is read only when every byte of it is the one
that our own conversion wrote.
"""
