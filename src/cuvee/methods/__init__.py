"""Methods: how to find a mixture or a policy for the target run.

Each file holds one method with its formula, citation, proposals (the proxy runs it asks for) and
result (the policy it commits to). The interface is `cuvee.core.protocols.Method`. Read `odm.py`
first: it is the smallest method. `ado.py` shows a method with a policy of its own.

- Learning on the target run: `odm`, `ado`, and `doge`, `ac_odm`, `hds`, `agent` in mode online.
- From proxy runs: `doremi`, `regmix/`, `mixmin`, `data_mixing_agent`, and the mode proxy of `doge`,
  `gain`, `ac_odm`, `hds`, `agent`. `pace.py` chooses settings from the ends of proxy runs.
- `baselines/`: static mixtures, schedules and a random walk.
"""
