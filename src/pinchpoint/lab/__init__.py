"""The lab: a simulated LLM service with physics and known faults, in real time over HTTP and in virtual time.

Not a model of any one product's code: it has vLLM's queueing rules and metric names, a roofline for the step time,
and explicit queues in front. Faults change mechanisms (params.LabParams), never what is emitted.

How it works: `engine` decides what is computed in each step, `cost` says how long the step takes, `timeline` lays
steps along a clock. `service` (virtual) and `server` (real HTTP) put the same API process, gateway and proxy in front.
"""
