"""Published experiments on several trained networks; each is a function of a sweep's folder."""
