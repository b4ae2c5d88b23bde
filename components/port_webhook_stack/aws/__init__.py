"""Target aws: settings, plan, policies and names of what `listener/aws.py` and its neighbours register."""
