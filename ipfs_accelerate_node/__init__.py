"""ipfs-accelerate-node: download once, then peers feed each other.

The map (a module imports only from layers below it; import-linter holds it):

```
7  cli/          click commands; talk to the daemon over HTTP, `up` starts it
6  api/          routes, wire types, access, keys
5  node.py       composition root: builds everything, owns start and stop order
4  benchmarks/ → peers/ → pinning/ → fetch/ | inference/
                 measuring; finding nodes; pinning services; verified transfer; workers and models
3  sources/      gateways and peers, Kubo, the Hub: one class per kind, one small protocol
2  store/ | kubo/ | records/             disk; the IPFS daemon; keys and signed records
1  content/ | config.py                  CIDs, UnixFS, CAR as pure functions; one frozen dataclass of settings,
                                          whose values config_values.py reads and checks
0  errors.py     every failure a user may see
```

Nothing heavy is imported here: `torch`, `transformers`, `huggingface_hub`, `ipfshttpclient` load inside the module
that needs them.
"""

__version__ = "0.1.0"
