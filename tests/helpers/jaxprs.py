"""What a traced function costs."""

import math

from jax.extend.core import jaxprs_in_params


def multiplications(jaxpr) -> int:
    """In all dense products; the compiler would count the body of a loop over blocks once."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            summed = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += math.prod((*equation.outvars[0].aval.shape, *summed))
        rounds = equation.params['length'] if equation.primitive.name == 'scan' else 1
        inner = jaxprs_in_params(equation.params)
        total += rounds * sum(map(multiplications, inner))
    return total
