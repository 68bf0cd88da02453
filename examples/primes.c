/* Prints the primes below LIMIT (default: 50), one per line. Usage: primes [LIMIT] */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static bool is_prime(long number)
{
    for (long divisor = 2; divisor * divisor <= number; divisor++)
        if (number % divisor == 0)
            return false;
    return number > 1;
}

int main(int argc, char *argv[])
{
    long limit = argc > 1 ? strtol(argv[1], NULL, 10) : 50;

    for (long number = 2; number < limit; number++)
        if (is_prime(number))
            printf("%ld\n", number);
    return EXIT_SUCCESS;
}
